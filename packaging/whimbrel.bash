# bash completion for whimbrel                                                             -*- shell-script -*-

_whimbrel() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]-} i
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W "run watch doctor top budget device replay report map --help --version" -- "$current")
    return
  fi
  case "$command" in
    run | watch)
      # Behind "--" stands another program's command line.
      for ((i = 2; i < COMP_CWORD; i++)); do
        if [ "${COMP_WORDS[i]}" = -- ]; then
          if declare -F _command_offset >/dev/null; then _command_offset $((i + 1)); else
            if [ $((i + 1)) -eq "$COMP_CWORD" ]; then mapfile -t COMPREPLY < <(compgen -c -- "$current"); else mapfile -t COMPREPLY < <(compgen -f -- "$current"); fi
          fi
          return
        fi
      done
      case "$previous" in
        --device) mapfile -t COMPREPLY < <(compgen -W "zstd lz4 ram file: nbd: chain: mirror:" -- "$current") ;;
        --stats | --events) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        --ram | --total) mapfile -t COMPREPLY < <(compgen -W "64M 256M 1G 4G" -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$([ "$command" = run ] && echo --ram --total --device --no-huge-pages) --json --stats --events --sample-stacks --watchdog --quiet --help --" -- "$current") ;;
      esac
      ;;
    top)
      case "$previous" in
        --metrics) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        --interval) mapfile -t COMPREPLY < <(compgen -W "1 5 15 60" -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -W "--once --json --metrics --interval --help" -- "$current") ;;
      esac
      ;;
    budget)
      case "$previous" in
        --ram | --total) mapfile -t COMPREPLY < <(compgen -W "none 64M 256M 1G 4G" -- "$current") ;;
        --wait) mapfile -t COMPREPLY < <(compgen -W "0 10 60" -- "$current") ;;
        *)
          case "$current" in
            -*) mapfile -t COMPREPLY < <(compgen -W "--ram --total --wait --json --help" -- "$current") ;;
            *) mapfile -t COMPREPLY < <(compgen -W "$(pgrep -x whimbrel)" -- "$current") ;;
          esac
          ;;
      esac
      ;;
    device)
      case "$previous" in
        --to) mapfile -t COMPREPLY < <(compgen -W "zstd lz4 ram file: nbd: chain: mirror:" -- "$current") ;;
        --wait) mapfile -t COMPREPLY < <(compgen -W "0 60 600" -- "$current") ;;
        *)
          case "$current" in
            -*) mapfile -t COMPREPLY < <(compgen -W "--to --wait --json --help" -- "$current") ;;
            *) mapfile -t COMPREPLY < <(compgen -W "$(pgrep -x whimbrel)" -- "$current") ;;
          esac
          ;;
      esac
      ;;
    replay)
      case "$previous" in
        --ram) mapfile -t COMPREPLY < <(compgen -W "64M 256M 1G 4G" -- "$current") ;;
        --policy) mapfile -t COMPREPLY < <(compgen -W "second-chance fifo random clairvoyant" -- "$current") ;;
        *)
          case "$current" in
            -*) mapfile -t COMPREPLY < <(compgen -W "--ram --policy --json --help" -- "$current") ;;
            *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
          esac
          ;;
      esac
      ;;
    report | map)
      case "$previous" in
        --output | -o | --svg | --html) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        *)
          case "$command$current" in
            report-*) mapfile -t COMPREPLY < <(compgen -W "--output --help" -- "$current") ;;
            map-*) mapfile -t COMPREPLY < <(compgen -W "--pid --svg --html --help" -- "$current") ;;
            *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
          esac
          ;;
      esac
      ;;
    doctor)
      case "$current" in
        -*) mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -c -- "$current") ;;
      esac
      ;;
  esac
}
complete -F _whimbrel whimbrel
