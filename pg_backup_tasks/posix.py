"""The POSIX shell texts that do on any machine what bulk.py does on this one, with nothing of ours installed there.

They come with their arguments over standard input, so that a process list shows neither: see script(). The texts of
shell.py go the same way.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

# What begins every far command: reads a script of so many bytes and runs it, unless the line was cut within it.
# Read byte by byte, because what comes after it is for the command.
_BOOT = 'exec sh -c \'s=$(dd bs=1 count=%d 2>/dev/null); case $s in *"#whole") eval "$s" ;; *) exit 125 ;; esac\''
_WHOLE = "#whole"
# What would turn libpq, a dump or an error message aside.
_SCRUB = r"""
for name in $(env | sed -n -e 's/^\(PG[A-Za-z0-9_]*\)=.*/\1/p' -e 's/^\(PSQL[A-Za-z0-9_]*\)=.*/\1/p' \
  -e 's/^\(LC_[A-Za-z]*\)=.*/\1/p' -e 's/^\(LANG[A-Z]*\)=.*/\1/p'); do unset "$name"; done
export LC_ALL=C
"""
# When the keeper is gone, so is everything that was begun under it: a line that was cut without a word (a firewall, a
# laptop asleep) closes nobody's standard input.
_TETHER = r"""
(
  while kill -0 %s; do sleep 1; done
  trap '' TERM
  kill -TERM 0
  kill -CONT 0
  sleep 3
  kill -KILL 0
) </dev/null >/dev/null 2>&1 &
"""
# Says its number and what time it is; then lives as long as it is told that we do, and says each time that it has
# heard. Nine to twelve seconds of silence end it: on a slow line a word may wait behind all that goes up before it.
KEEPER = r"""
exec 3<&0
trap 'heard=1' USR1
heard=1
echo "$$ $(date -u +%Y%m%d%H%M%S)"
{
  while IFS= read -r _; do kill -USR1 "$$"; echo; done
  kill -KILL 0
} <&3 &
missed=0
while [ "$missed" -lt 3 ]; do
  heard=
  sleep 3
  if [ "$heard" ]; then missed=0; else missed=$((missed + 1)); fi
done
kill -KILL 0
"""

# Anything may stand under the path: only a link is a claim, and `ln` would go into a folder.
CLAIM = '[ -e "$1" ] || [ -L "$1" ] || ln -s -- "$2" "$1" || [ -L "$1" ] || exit 4; [ "$(readlink -- "$1")" = "$2" ]'
CLAIMED = 'if [ -L "$1" ]; then readlink -- "$1"; elif [ -e "$1" ]; then echo; else exit 3; fi'
# Kind, size, target and name of each that starts so, all ended by NUL; then what ls says of them, which has the sizes:
# a process for each file would take its time. Only of a name in two lines can it not be read there.
ENTRIES = r"""
[ -e "$1" ] || exit 3
cd -- "$1" || exit
if [ "$2" ]; then set -- "$2"*; else set -- * .[!.]* ..?*; fi
for name; do
  size= target= kind=other
  case $name in .|..) continue ;; esac
  if [ -L "$name" ]; then kind=link target=$(readlink -- "$name"; echo .) target=${target%??}
  elif [ -f "$name" ]; then
    kind=file
    case $name in *"
"*) size=$(wc -c <"$name") ;; esac
  elif [ ! -e "$name" ]; then continue
  fi
  printf '%s\0%s\0%s\0%s\0' "$kind" "$size" "$target" "$name"
done
unset TIME_STYLE
ls -lnA
"""
# For each path a line with its size, or a dash for what is not there, and then its bytes.
READ = r"""
for path; do
  if [ -e "$path" ]; then
    size=$(wc -c <"$path") || exit
    echo "$((size))"
    dd if="$path" bs=65536 2>/dev/null || exit
  else echo -
  fi
done
"""
# A line that dies ends the data as well: only what has come whole gets the name.
WRITE = r"""
umask 077
new=${1%/*}/.${1##*/}.new
rm -f -- "$new"
head -c "$2" >"$new" && [ "$(wc -c <"$new")" -eq "$2" ] || { rm -f -- "$new"; exit 5; }
{ sync -- "$new" 2>/dev/null || sync; } && mv -f -- "$new" "$1" || exit
sync -- "${1%/*}" 2>/dev/null || sync
"""
# A file that goes away between two looks is one that is not there.
SIZES = 'for path; do { wc -c <"$path"; } 2>/dev/null || echo 0; done'
HEAD = 'dd bs=1 count=512 <"$1" 2>/dev/null'
UNPACKED_HEAD = 'gzip -dc <"$1" 2>/dev/null | dd bs=1 count=512 2>/dev/null'
# Who can enter a folder, POSIX lets only ls tell. Exit code 4: it serves something else (machine.py says what does).
MAKE_FOLDER = r"""
[ -d "$1" ] || { mkdir -p -m 700 -- "$1" && chmod 700 -- "$1"; exit; }
mode=$(ls -ld -- "$1/.") || exit
case $mode in d????????[tT]*|d???------*) exit ;; esac
others=
for each in "$1"/* "$1"/.*; do
  case ${each##*/} in
    backup_*) others=; break ;;
    .|..|lost+found|.partial_*|.cleared_*|.fetching) ;;
    *) if [ -d "$each" ] && ! [ -L "$each" ]; then others=yes; fi ;;
  esac
done
[ ! "$others" ] || exit 4
chmod go= -- "$1" || exit
printf '%s\n' "${mode%% *}"
"""
FLUSH = r"""
for path; do
  [ -d "$path" ] || chmod 600 -- "$path" || exit
  sync -- "$path" 2>/dev/null || sync || exit
done
"""
FREE = r"""
folder=$1
until [ -e "$folder" ]; do folder=${folder%/*} folder=${folder:-/}; done
df -Pk -- "$folder" | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9-]*% .*/\1/p'
"""
REMOVE = 'rm -f -- "$@"'
REMOVE_TREE = 'rm -rf -- "$1" 2>/dev/null || :'
# pg_restore goes round for ever where a tar ends within a member; a whole one ends with zeros.
ENDS_AS_TAR = '[ "$(tail -c 1024 <"$1" | tr -d "\\000" | wc -c)" -eq 0 ]'
# The SHA-256 of standard input, by whatever there is, the quickest first.
_SUM = r"""
sum() {
  if command -v openssl >/dev/null; then sum=$(openssl dgst -sha256 -r)
  elif command -v sha256sum >/dev/null; then sum=$(sha256sum)
  else sum=$(shasum -a 256)
  fi && printf '%s\n' "${sum%% *}"
}
"""
DIGEST = (
    _SUM
    + r"""
size=$(wc -c <"$1") && sum=$(sum <"$1") || exit
printf '%s %s\n' "$((size))" "$sum"
"""
)
# Whether a plain dump goes on in a database of its own choice, as `pg_dump --create` leaves it.
CONNECTS = '{ if [ "$2" ]; then gzip -dc <"$1"; else cat <"$1"; fi; } 2>/dev/null | grep -q \'^\\\\connect \''

# Prints, for each table of a plain dump: its rows, how many lines its COPY has, and these; then whether the dump is
# whole. Rows are what stands between a COPY under pg_dump's heading for data and the line that no row can be.
COUNT = r"""
copying && $0 != "\\." { rows++; next }
copying { print rows, lines; print copy; copying = lines = data = 0; next }
data && (lines || /^COPY /) {
  copy = lines++ ? copy "\n" $0 : $0
  if (/ FROM stdin;$/) { copying = 1; rows = 0 }
  next
}
/^-- Data for Name: .*; Type: TABLE DATA; Schema: / { data = 1; next }
/^-- PostgreSQL database dump complete$/ { whole = 1; next }
!/^(--)?$/ && $1 != "\\unrestrict" { whole = data = 0 }
END { print (whole ? "whole" : "torn") }
"""
# Passes a plain dump on, less what its psql would not take; fails unless it was whole and nobody cried for help. With
# *one* all of it is in one transaction, which what pg_dump has around large objects must not end.
EDIT = r"""
BEGIN { count = split(skip, names, " "); while (count) unknown[names[count--]] = 1 }
copying { print; copying = $0 != "\\."; next }
$0 == "\\!torn" { whole = 0; exit }
/^-- (Data for )?Name: .*; Type: .*; Schema: / { kind = $0; sub(/.*; Type: /, "", kind); sub(/; Schema: .*/, "", kind) }
/^SET / && !kind && ($2 in unknown) { next }
$1 == "\\restrict" && !kind { key = $2; if (restrict) next }
$1 == "\\unrestrict" && $2 == key && restrict { next }
one && kind == "BLOBS" && /^(BEGIN|COMMIT);$/ { next }
{ print }
kind == "TABLE DATA" && / FROM stdin;$/ { copying = 1 }
/^-- PostgreSQL database dump complete$/ { whole = 1; next }
!/^(--)?$/ && $1 != "\\unrestrict" { whole = 0 }
END { exit !whole }
"""
# Without pipefail each part of a pipeline says its own code, on a way of its own; and what comes last in the pipe comes
# first in what is judged: it is what makes the others fail. What is written is hashed on its way.
# An archive that is still being written is followed until its reader has seen the end of it.
# Arguments: the file for SQL and for packed SQL (or nothing), COUNT, whether to follow, the archive, what prints it.
DERIVE = (
    _SUM
    + r"""
umask 077
plain=$1 packed=$2 count=$3 follow=$4 archive=$5 hashing=/dev/null packing=/dev/null follower=; shift 5
for pipe in ${plain:+"$plain.pipe"} ${packed:+"$packed.pipe"} ${follow:+"$archive.pipe"}; do
  mkfifo -- "$pipe" || exit
done
[ -z "$plain" ] || hashing=$plain.pipe
[ -z "$packed" ] || packing=$packed.pipe
if command -v pigz >/dev/null; then pack=pigz; else pack=gzip; fi
source=$archive
if [ "$follow" ]; then
  until [ -e "$archive" ]; do sleep 0.1 2>/dev/null || sleep 1; done
  source=$archive.pipe
  tail -c +1 -f -- "$archive" >"$source" 2>/dev/null &
  follower=$!
fi
exec 4>&1
codes=$({
  if [ "$plain" ]; then
    { sum=$(sum <"$hashing"); echo "hash $?" "$sum" >&3; } &
  fi
  if [ "$packed" ]; then
    {
      { "$pack" -1 <"$packing"; echo "gzip $?" >&3; } |
      { tee -- "$packed"; echo "packed $?" >&3; } |
      { sum=$(sum); echo "rehash $?" "$sum" >&3; }
    } &
  fi
  { "$@" <"$source"; echo "reader $?" >&3; } |
  { tee -- "${plain:-/dev/null}" "$hashing" "$packing"; echo "tee $?" >&3; } |
  { awk "$count" >&4; echo "awk $?" >&3; }
  wait
} 3>&1)
[ -z "$follower" ] || kill "$follower"
rm -f -- ${plain:+"$plain.pipe"} ${packed:+"$packed.pipe"} ${follow:+"$archive.pipe"}
echo codes
printf '%s\n' "$codes"
"""
)
# Standard input holds what goes first and what goes last; dd takes not a byte too much of it.
# Arguments: how many bytes these are, EDIT and its three settings, the file, how many words the reader has, these,
# psql.
LOAD = r"""
before=$1 after=$2 edit=$3 skip=$4 restrict=$5 one=$6 path=$7; shift 7
exec 5<&0
words() { dd bs=1 count="$1" <&5 2>/dev/null; }
reader() {
  left=$1 all=$(($# - 1)); shift
  for word; do [ "$left" -gt 0 ] || break; set -- "$@" "$word"; left=$((left - 1)); done
  shift "$all"
  "$@"
}
psql() { shift "$1"; shift; "$@"; }
{
  {
    words "$before"
    { reader "$@" <"$path" || { echo "reader $?" >&3; printf '\n\\!torn\n'; }; } |
      if awk -v skip="$skip" -v restrict="$restrict" -v one="$one" "$edit"; then words "$after"
      else echo "dump torn" >&3; fi
  } | { psql "$@"; echo "psql $?" >&3; }
} 3>&1
"""


def boot(length: int) -> str:
    """Return the command line, the same for every login shell, that runs a script of so many bytes."""
    return _BOOT % length


def script(text: str, words: Sequence[str], env: Sequence[tuple[str, str]], keeper: str | None) -> bytes:
    """Return the script that runs *text* with *words* as its arguments; with a *keeper*, no longer than that lives."""
    parts = [_SCRUB, *(f"export {name}={shlex.quote(value)}" for name, value in env)]
    if keeper:
        parts.append(_TETHER % keeper)
    parts += [f"set -- {shlex.join(words)}", text, _WHOLE]
    return "\n".join(parts).encode("utf-8", "surrogateescape")
