# Completions of vmm, sourced by bash. `vmm complete` knows what comes next; what it does not know are files.
# shellcheck shell=bash

_vmm() {
    local word last=$2 joined=
    local -a words=()
    # For bash a : and a = are words of their own, and at the cursor none. For us they are part of one.
    [[ ${COMP_WORDS[COMP_CWORD]} != [:=] ]] || last=${COMP_WORDS[COMP_CWORD]}
    for word in "${COMP_WORDS[@]:0:COMP_CWORD}" "$last"; do
        if [[ ${#words[@]} -gt 0 && ($word == [:=]* || $joined == *[:=]) ]]; then
            joined=$joined$word
            words[-1]=$joined
        else
            joined=$word
            words+=("$word")
        fi
    done
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        # Without what is before the last of them, which bash has already.
        COMPREPLY+=("${word#"${joined%"${joined##*[:=]}"}"}")
    done < <("$1" complete -- "${words[@]}" 2>/dev/null)
}

complete -o default -F _vmm vmm
