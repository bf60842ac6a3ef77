#compdef whimbrel
# zsh completion for whimbrel

_whimbrel() {
  local -a commands=('run:run a program within a memory budget' 'watch:run a program that opens sessions, and look at them' 'doctor:tell what whimbrel can do on this machine'
    'top:show running programs' 'budget:show or change the budget of a run' 'device:show or change the device of a run' 'replay:tell how a recorded run would have done with other budgets'
    'report:make one HTML page of a recorded run' 'map:show the memory of a process, or of a recorded run')
  if (( CURRENT == 2 )); then
    _describe command commands
    _arguments '--help[help]' '--version[version]'
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  local -a told=(
    '--json[print the summary as JSON]'
    '--stats[also write the summary to this file]:file:_files'
    '--events[write each move of pages to this file]:file:_files'
    '--sample-stacks=-[tell which places in the code wait for memory, by 1 in N faults]::N:(16 64 256)'
    '--watchdog[seconds until a stuck engine is reported, 0 never]:seconds:(5 20 60 0)'
    '(-q --quiet)'{-q,--quiet}'[print no summary]'
    '(-h --help)'{-h,--help}'[help]'
    '*::program:_normal')
  case $command in
    run)
      _arguments \
        '--ram[most memory resident and uncompressed]:size:(64M 256M 1G 4G)' \
        '--total[most memory in all]:size:(256M 1G 4G)' \
        '--device[where pages go]:device:(zstd lz4 ram file\: nbd\: chain\: mirror\:)' \
        '--no-huge-pages[do not give streams 2 MiB pages]' \
        $told
      ;;
    watch) _arguments $told ;;
    top)
      _arguments \
        '--once[print one look and end]' \
        '--json[print JSON]' \
        '--metrics[write Prometheus text to this file]:file:_files' \
        '--interval[seconds between looks]:seconds:(1 5 15 60)' \
        '(-h --help)'{-h,--help}'[help]'
      ;;
    budget)
      _arguments \
        '--ram[most memory resident and uncompressed]:size:(none 64M 256M 1G 4G)' \
        '--total[most memory in all]:size:(none 256M 1G 4G)' \
        '--wait[seconds to wait until it is reached]:seconds:(0 10 60)' \
        '--json[print JSON]' \
        '(-h --help)'{-h,--help}'[help]' \
        ':run:_pids'
      ;;
    device)
      _arguments \
        '--to[where pages go from now on]:device:(zstd lz4 ram file\: nbd\: chain\: mirror\:)' \
        '--wait[seconds to wait until everything has moved]:seconds:(0 60 600)' \
        '--json[print JSON]' \
        '(-h --help)'{-h,--help}'[help]' \
        ':run:_pids'
      ;;
    replay)
      _arguments \
        '--ram[budgets to try]:sizes:(64M 256M 1G 4G)' \
        '--policy[policies to try]:policies:(second-chance fifo random clairvoyant)' \
        '--json[print JSON]' \
        '(-h --help)'{-h,--help}'[help]' \
        ':events:_files'
      ;;
    report) _arguments '(-o --output)'{-o,--output}'[where the page goes]:file:_files' '(-h --help)'{-h,--help}'[help]' ':events:_files' ;;
    map)
      _arguments \
        '--pid[of a recording: which process]:process:' \
        '--svg[write a picture]:file:_files' \
        '--html[write an interactive page]:file:_files' \
        '(-h --help)'{-h,--help}'[help]' \
        ':process or events:_files'
      ;;
    doctor) _arguments '--json[print JSON]' '(-h --help)'{-h,--help}'[help]' ':program:_command_names -e' ;;
  esac
}
_whimbrel "$@"
