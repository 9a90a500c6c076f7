"""Kinds of source files by their names, under the names that ripgrep gives them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FILE_TYPES"]

#: `type` of grep -> patterns of names.
FILE_TYPES: Mapping[str, tuple[str, ...]] = {
    name: tuple(patterns.split())
    for name, patterns in {
        "c": "*.c *.h *.H",
        "cpp": "*.cpp *.hpp *.cc *.hh *.cxx *.hxx *.C *.H *.h *.inl *.c++ *.h++",
        "cs": "*.cs",
        "css": "*.css *.scss",
        "csv": "*.csv",
        "dart": "*.dart",
        "docker": "*Dockerfile*",
        "elixir": "*.ex *.exs *.eex *.heex *.leex",
        "erlang": "*.erl *.hrl",
        "go": "*.go",
        "haskell": "*.hs *.lhs",
        "html": "*.html *.htm *.ejs",
        "java": "*.java *.jsp *.jspx *.properties",
        "js": "*.js *.jsx *.mjs *.cjs *.vue",
        "json": "*.json *.sarif composer.lock",
        "julia": "*.jl",
        "kotlin": "*.kt *.kts",
        "lua": "*.lua",
        "make": "*.mk *.mak Makefile makefile GNUmakefile Gnumakefile gnumakefile",
        "md": "*.md *.markdown *.mdown *.mkdn *.mkd *.mdwn *.mdx",
        "nix": "*.nix",
        "objc": "*.m *.h",
        "perl": "*.perl *.pl *.PL *.plh *.plx *.pm *.t",
        "php": "*.php *.php3 *.php4 *.php5 *.phtml",
        "protobuf": "*.proto",
        "py": "*.py *.pyi",
        "r": "*.R *.r *.Rmd *.Rnw",
        "ruby": "*.rb *.rbw *.gemspec Gemfile Rakefile config.ru .irbrc",
        "rust": "*.rs",
        "scala": "*.scala *.sbt",
        "sh": "*.sh *.bash *.zsh *.ksh *.csh *.tcsh .bashrc .bash_profile .zshrc .profile",
        "sql": "*.sql *.psql",
        "svelte": "*.svelte",
        "swift": "*.swift",
        "tex": "*.tex *.ltx *.cls *.sty *.bib *.dtx *.ins",
        "tf": "*.tf *.tfvars",
        "toml": "*.toml Cargo.lock",
        "ts": "*.ts *.tsx *.mts *.cts",
        "txt": "*.txt",
        "vue": "*.vue",
        "xml": "*.xml *.xsd *.xsl *.xslt *.rng *.dtd *.xhtml",
        "yaml": "*.yaml *.yml",
        "zig": "*.zig",
    }.items()
}
