package completion

import "strings"

// Command is the hidden first word with which the scripts call the program.
const Command = "__complete"

// Scripts are what the shells source, with PROGRAM for the program's name.
var scripts = map[string]string{
	"bash": `# bash completion for PROGRAM
_FUNCTION() {
    local out
    mapfile -t out < <("${COMP_WORDS[0]/#\~/$HOME}" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    COMPREPLY=("${out[@]:1}")
    case "${out[0]}" in
        files) compopt -o default 2>/dev/null ;;
        folders) compopt -o dirnames 2>/dev/null ;;
    esac
    # A value follows at once.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -F _FUNCTION PROGRAM
`,
	"zsh": `#compdef PROGRAM
# zsh completion for PROGRAM
_FUNCTION() {
    local -a out words_and_help
    local line word help
    out=("${(@f)$(command ${(Q)words[1]} __complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    case "$out[1]" in
        files) compset -P '*='; _files; return ;;
        folders) compset -P '*='; _files -/; return ;;
    esac
    for line in "${(@)out[2,-1]}"; do
        word=${line%%$'\t'*} help=${line#*$'\t'}
        words_and_help+=("${word//:/\\:}:$help")
    done
    _describe -V 'PROGRAM' words_and_help
}
if [ "$funcstack[1]" = "_FUNCTION" ]; then
    _FUNCTION "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u -D }
    compdef _FUNCTION PROGRAM
fi
`,
	"fish": `# fish completion for PROGRAM
function __FUNCTION_complete
    set -l typed (commandline -opc)
    set -l program $typed[1]
    set -e typed[1]
    set -l current (commandline -ct)
    set -l out (command $program __complete fish $typed "$current" 2>/dev/null)
    switch "$out[1]"
        case files folders
            set -l prefix (string match -r -- '^--?[^=]*=' "$current")
            for path in (__fish_complete_path (string replace -r -- '^--?[^=]*=' '' "$current"))
                echo "$prefix$path"
            end
            return
    end
    set -e out[1]
    printf '%s\n' $out
end
complete -c PROGRAM -f -k -a '(__FUNCTION_complete)'
`,
}

// Shells are those that Script knows.
var Shells = []string{"bash", "zsh", "fish"}

// Script is what a shell is to source for a program; "" for a shell that is not known.
func Script(shell, program string) string {
	function := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, program)
	return strings.NewReplacer("PROGRAM", program, "FUNCTION", function).Replace(scripts[shell])
}

// Answer is what the program prints for a script: args are those after Command. The first line is what of the file
// system goes on, then there is a line a candidate, with its help behind a tab where the shell shows it.
func Answer(args []string, complete func(words []string) ([]Candidate, Paths)) string {
	if len(args) == 0 {
		return ""
	}
	shell, words := args[0], args[1:]
	cut := 0 // of each candidate, in bytes: what the shell does not take for a part of the last word
	if shell == "bash" {
		line, breaks := "", ""
		if len(words) > 0 {
			line = words[0]
		}
		if len(words) > 1 {
			breaks = words[1]
		}
		if words = Split(line); len(words) > 0 {
			words = words[1:]
		}
		if len(words) > 0 {
			last := words[len(words)-1]
			for _, c := range "=:" {
				if i := strings.LastIndex(last, string(c)); i >= 0 && strings.ContainsRune(breaks, c) {
					cut = max(cut, i+1)
				}
			}
		}
	}
	found, paths := complete(words)
	var b strings.Builder
	b.WriteString(string(paths) + "\n")
	for _, c := range found {
		if strings.ContainsAny(c.Word, "\n\t") || len(c.Word) < cut {
			continue
		}
		if shell == "bash" {
			b.WriteString(quote(c.Word[cut:]) + "\n")
		} else {
			b.WriteString(c.Word + "\t" + strings.ReplaceAll(c.Help, "\n", " ") + "\n")
		}
	}
	return b.String()
}

// Split is a line as a shell splits it into words, without expansions. The last word is the one that is not ended.
func Split(line string) []string {
	var words []string
	var word strings.Builder
	begun := false
	quoted := rune(0)
	escaped := false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quoted != '\'':
			escaped, begun = true, true
		case quoted != 0 && r == quoted:
			quoted = 0
		case quoted != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quoted, begun = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	return append(words, word.String())
}

// quote puts a backslash before what a shell would not leave as it is.
func quote(word string) string {
	var b strings.Builder
	for _, r := range word {
		if strings.ContainsRune(" !\"#$&'()*;<>?[\\]^`{|}~", r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
