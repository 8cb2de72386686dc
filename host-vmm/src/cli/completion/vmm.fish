# Completions of vmm for fish. `vmm complete` knows what comes next; what it does not know are files.

function __vmm_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] complete -- $words "$current" 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end

complete -c vmm -f -a '(__vmm_complete)'
