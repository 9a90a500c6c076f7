"""Requests written by hand, without a look at the grammar's patterns: how people might put it. (prompt, call, ...)."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["WILD"]


def _read(path: str) -> tuple[str, dict[str, str]]:
    return "read_file", {"path": path}


def _write(path: str, content: str) -> tuple[str, dict[str, str]]:
    return "write_file", {"path": path, "content": content}


def _edit(path: str, old: str, new: str) -> tuple[str, dict[str, str]]:
    return "edit", {"path": path, "old_string": old, "new_string": new}


def _list(path: str = ".") -> tuple[str, dict[str, str]]:
    return "list_files", {"path": path}


def _grep(pattern: str, path: str = ".") -> tuple[str, dict[str, str]]:
    return "grep", {"pattern": pattern, "path": path}


def _shell(command: str) -> tuple[str, dict[str, str]]:
    return "shell", {"command": command}


def _echo(text: str) -> tuple[str, dict[str, str]]:
    return "echo", {"text": text}


_NOW: Final[tuple[str, dict[str, str]]] = ("utc", {})

WILD: Final[tuple[tuple[Any, ...], ...]] = (
    ("Write 'hello' to hello.txt, read it back and end with DONE", _write("hello.txt", "hello"), _read("hello.txt")),
    ('create notes.txt with "hello" and read it back', _write("notes.txt", "hello"), _read("notes.txt")),
    ("I'd love to know what's going on inside changelog.md", _read("changelog.md")),
    ("gimme requirements.txt", _read("requirements.txt")),
    ("Could you possibly read me what server.log says?", _read("server.log")),
    ("Whatever is stored in secrets.yaml, show it to me", _read("secrets.yaml")),
    ("I forgot what I wrote in diary.txt, can you read it?", _read("diary.txt")),
    ("pls show me setup.cfg thx", _read("setup.cfg")),
    ("Print out the file docs/intro.md for me.", _read("docs/intro.md")),
    ("let's see main.go", _read("main.go")),
    ("cat src/index.ts", _read("src/index.ts")),
    ('Make me a file greeting.txt that has "good morning" in it', _write("greeting.txt", "good morning")),
    ('I want you to write the sentence "the cat sleeps" into cat.txt', _write("cat.txt", "the cat sleeps")),
    ('Put "alpha beta" in a brand new file letters.txt', _write("letters.txt", "alpha beta")),
    ("save the word banana to fruit.txt please", _write("fruit.txt", "banana")),
    ('Please create hello.py containing print("hi")', _write("hello.py", 'print("hi")')),
    ('new file test.md with text "# Title"', _write("test.md", "# Title")),
    ("Store 42 in answer.txt", _write("answer.txt", "42")),
    ('Could you note "call the dentist" in todo.txt?', _write("todo.txt", "call the dentist")),
    ("write 'x = 1' to config.py", _write("config.py", "x = 1")),
    ('In config.ini please swap "debug" for "release"', _edit("config.ini", "debug", "release")),
    ('replace "foo" by "bar" in lib/util.js', _edit("lib/util.js", "foo", "bar")),
    ("Change the word cat to dog in story.txt", _edit("story.txt", "cat", "dog")),
    ('open main.py and change "port = 80" to "port = 8080"', _edit("main.py", "port = 80", "port = 8080")),
    ('fix the typo "teh" to "the" in essay.md', _edit("essay.md", "teh", "the")),
    ("in notes.txt, milk should be replaced with cheese", _edit("notes.txt", "milk", "cheese")),
    ('Edit app.toml and replace "0.1" with "0.2"', _edit("app.toml", "0.1", "0.2")),
    ("What files do you see?", _list()),
    ("show me what's in this folder", _list()),
    ("list everything in the src folder", _list("src")),
    ("Which files are in docs?", _list("docs")),
    ("Can you list the directory tests/data for me?", _list("tests/data")),
    ("what is in the folder build?", _list("build")),
    ("files please", _list()),
    ("ls", _list()),
    ("Find every place where foo_bar is used", _grep("foo_bar")),
    ('search the docs folder for "license"', _grep("license", "docs")),
    ("where is parse_config defined?", _grep("parse_config")),
    ('does main.rs mention "unsafe"?', _grep("unsafe", "main.rs")),
    ("grep TODO", _grep("TODO")),
    ('look for "password" in config.yml', _grep("password", "config.yml")),
    ('Please find the string "import os" in src', _grep("import os", "src")),
    ("run the tests with pytest -q", _shell("pytest -q")),
    ("execute git status", _shell("git status")),
    ("please run `make build` in the shell", _shell("make build")),
    ("run ls -la", _shell("ls -la")),
    ("Use the terminal to run npm install", _shell("npm install")),
    ("could you tell me the time?", _NOW),
    ("What's the time right now?", _NOW),
    ("time please", _NOW),
    ("what date do we have today?", _NOW),
    ("Say hello", _echo("hello")),
    ('repeat after me: "I am a robot"', _echo("I am a robot")),
    ("echo good night moon", _echo("good night moon")),
    ('Create a.txt with "one" and then list the files', _write("a.txt", "one"), _list()),
    ('Write "red" to c.txt, then change "red" to "blue" in it', _write("c.txt", "red"), _edit("c.txt", "red", "blue")),
    ("read a.txt and then read b.txt", _read("a.txt"), _read("b.txt")),
    ('replace "1" with "2" in n.txt and show me the file', _edit("n.txt", "1", "2"), _read("n.txt")),
    ("what is the capital of France?",),
    ("Write me a poem about autumn.",),
    ("thanks, you are great",),
    ("How do I learn Python?",),
    ("hello there",),
    ("translate house into Spanish",),
    ("Why is the sky blue?",),
    ("2+2?",),
)
