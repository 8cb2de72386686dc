#compdef vmm
# Completions of vmm for zsh. `vmm complete` knows what comes next; what it does not know are files.

_vmm() {
    local line
    local -a values shown
    for line in "${(@f)$("${(Q)words[1]}" complete -- "${(@Q)words[1,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        values+=("${line%%$'\t'*}")
        shown+=("${line/$'\t'/  -- }")
    done
    if ((${#values})); then
        compadd -l -d shown -a values
    else
        _files
    fi
}

# Found by its name in a folder of functions it is called at once; read by `source` it waits to be.
if [[ ${funcstack[1]} == _vmm ]]; then
    _vmm "$@"
else
    compdef _vmm vmm
fi
