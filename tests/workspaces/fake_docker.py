"""The command line of `fake_dockerd`: finds it in the folder $DOCKER_CONFIG, and hands it words and streams."""

from __future__ import annotations

import json
import os
import socket
import sys


def client(words: list[str]) -> int:
    engine = socket.socket(socket.AF_UNIX)
    try:
        engine.connect(os.environ["DOCKER_CONFIG"] + "/engine.sock")
    except (OSError, KeyError):
        sys.stderr.write("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n")
        return 1
    socket.send_fds(engine, [json.dumps({"words": words, "env": dict(os.environ)}).encode()], [0, 1, 2])
    return json.loads(engine.recv(64) or b"125")


if __name__ == "__main__":
    sys.exit(client(sys.argv[1:]))
