"""The POSIX shell texts that run commands so that nothing outlives us, here and on any other machine.

They use what POSIX gives and nothing else, are handed to `sh -c`, and take everything that varies as arguments:
nothing is ever pasted into them.
"""

from __future__ import annotations

from collections.abc import Sequence

from .model import Command

_SECRETS = r"""
umask 077
count=$1; shift
while [ "$count" -gt 0 ]; do
  IFS= read -r value || exit 125
  export "$1=$value"
  shift; count=$((count - 1))
done
unset value
"""

# Standard input is the lifeline: when it closes, whoever asked for the command is gone, and so is the command.
# TERM is for the command alone: the shell stays to see its end, so that the shell's end is the end of all. What
# some shells say of a command that a signal ended is no word of the command's.
# Arguments: how many secrets, their names, the file that is the command's standard input, the command.
GUARD = (
    _SECRETS
    + r"""
input=$1; shift
exec 3<&0 4>&2 2>/dev/null
"$@" 3<&- 2>&4 4>&- <"$input" &
child=$!
trap '' TERM
{
  while IFS= read -r _; do :; done
  kill -TERM 0
  kill -CONT 0
  (trap - TERM; exec sleep 3)
  kill -KILL 0
} <&3 >/dev/null 4>&- &
watch=$!
exec 3<&- 4>&-
wait "$child"
code=$?
kill -KILL "$watch"
kill -TERM 0
wait "$watch"
exit "$code"
"""
)

# The command reads what we say on standard input, and ends with it at once: a client that waits for its server's
# answer would not notice the end of its input. Arguments: how many secrets, their names, the command.
SESSION = (
    _SECRETS
    + r"""
trap '' TERM
exec 4>&2 2>/dev/null
{ trap - TERM; echo; cat; kill -KILL 0; } 4>&- | {
  trap - TERM
  # Not before the other side can be ended: a command that ends at once would leave it behind.
  IFS= read -r _
  "$@" 2>&4 4>&-
  code=$?
  trap '' TERM
  kill -TERM 0
  exit "$code"
}
"""
)

# Goes on to its end whatever becomes of us: a backup is published whole or not at all.
# Arguments: any number of `move FROM TO`, `link TARGET NAME`, `remove NAME`.
PUBLISH = r"""
trap '' HUP INT TERM
while [ $# -gt 0 ]; do
  case $1 in
  move)
    if [ -e "$3" ] || [ -L "$3" ]; then echo "$3 exists" >&2; exit 1; fi
    mv -- "$2" "$3" || exit 1
    shift 3 ;;
  link)
    new=${3%/*}/.${3##*/}.new
    rm -f -- "$new" && ln -s -- "$2" "$new" && mv -f -- "$new" "$3" || exit 1
    shift 3 ;;
  remove)
    rm -f -- "$2" || exit 1
    shift 2 ;;
  esac
done
"""

# Prints `FOLDER<tab>VERSION` for every folder with a whole set of client tools. Arguments: folders to ask first.
TOOLS = r"""
ask() {
  [ -x "$1/pg_dump" ] && [ -x "$1/pg_restore" ] && [ -x "$1/psql" ] || return 0
  version=$("$1/pg_dump" --version 2>/dev/null) && printf '%s\t%s\n' "$1" "$version"
}
for folder in "$@" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
  /opt/homebrew/opt/postgresql*/bin /opt/homebrew/opt/libpq/bin \
  /usr/local/opt/postgresql*/bin /usr/local/opt/libpq/bin /usr/local/pgsql/bin \
  /Applications/Postgres.app/Contents/Versions/*/bin
do
  ask "$folder"
done
found=$(command -v pg_dump)
# Debian's /usr/bin/pg_dump is a slow wrapper around one of the folders above.
[ -z "$found" ] || { [ -e /usr/share/postgresql-common/pg_wrapper ] && [ "$found" = /usr/bin/pg_dump ]; } ||
  ask "${found%/*}"
exit 0
"""

# Prints who a process is, so that another with the same number is not taken for it: when it began (in clock ticks
# where there is a /proc, else as ps says) and the boot it belongs to. Nothing for a dead one. Argument: its number.
IDENTITY = r"""
if [ -r /proc/self/stat ]; then
  line=$(cat "/proc/$1/stat" 2>/dev/null)
  set -- ${line##*) }
  case ${1:-X} in
  Z | X) ;;
  *) printf '%s\n' "${20}" ;;
  esac
else
  LC_ALL=C TZ=UTC ps -o lstart= -p "$1" 2>/dev/null | tr -s ' ' _
fi
cat /proc/sys/kernel/random/boot_id 2>/dev/null
uname -n
"""


def guarded(command: Command, standard_input: str = "/dev/null") -> tuple[str, ...]:
    """Return the arguments after `sh` that run *command* under GUARD."""
    return ("-c", GUARD, "guard", *_secret_names(command), standard_input, *command.argv)


def conversation(command: Command) -> tuple[str, ...]:
    """Return the arguments after `sh` that run *command* under SESSION."""
    return ("-c", SESSION, "session", *_secret_names(command), *command.argv)


def secret_lines(command: Command) -> bytes:
    """Return what GUARD and SESSION read first: one secret a line."""
    return "".join(f"{value}\n" for _, value in command.secrets).encode()


def _secret_names(command: Command) -> Sequence[str]:
    return (str(len(command.secrets)), *(name for name, _ in command.secrets))
