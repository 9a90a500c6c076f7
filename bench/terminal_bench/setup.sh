#!/bin/bash
# Install Windlass in a task's container: source this, or run it. It leaves $prefix/bin/windlass.
#
#   WINDLASS_PREFIX   where it goes (default: ~/.local/share/windlass-bench); one that is there already is used
#   WINDLASS_PACKAGE  what pip installs (default: windlass): a requirement, or the path of a wheel
#
# In a subshell: the harness sources this in the shell that the task's terminal goes on with.
(
    set -eu
    prefix="${WINDLASS_PREFIX:-$HOME/.local/share/windlass-bench}"
    package="${WINDLASS_PACKAGE:-windlass}"
    if [ ! -x "$prefix/bin/windlass" ]; then
        python=""
        for name in python3.14 python3.13 python3.12 python3.11 python3; do
            if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
                python="$name"
                break
            fi
        done
        if [ -n "$python" ]; then
            "$python" -m venv "$prefix"
            "$prefix/bin/python" -m pip install -q --disable-pip-version-check "$package"
        else
            # No Python that is new enough: uv brings one, and leaves the task's own as it is.
            if ! command -v uv >/dev/null 2>&1; then
                if ! command -v curl >/dev/null 2>&1; then
                    apt-get update -qq && apt-get install -y -qq curl ca-certificates
                fi
                curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$prefix/uv" UV_NO_MODIFY_PATH=1 sh
                PATH="$prefix/uv:$PATH"
            fi
            uv venv -q --allow-existing --python 3.12 "$prefix"
            uv pip install -q --python "$prefix/bin/python" "$package"
        fi
    fi
    "$prefix/bin/windlass" --version
)
