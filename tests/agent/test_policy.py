"""Rules, layers, modes and the permissions of child runs: pure decisions, without anybody to ask."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.agent.layers import permissions_from
from windlass.agent.policy import (
    COMMANDS,
    EDITS,
    MODES,
    Decision,
    Layer,
    LayerName,
    Mode,
    Permissions,
    Policy,
    Rule,
    call_digest,
    call_hash,
    live,
    narrowed,
)
from windlass.agent.rules import RANK, Action
from windlass.core import registry
from windlass.core.config import PolicyTable
from windlass.core.errors import ConfigError
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.workspaces.paths import is_protected

READ = ToolSpec("read_file", annotations=ToolAnnotations(read_only=True))
WRITE = ToolSpec("write_file", annotations=ToolAnnotations(destructive=True))
PATCH = ToolSpec("apply_patch", annotations=ToolAnnotations(destructive=True))
SHELL = ToolSpec("shell", annotations=ToolAnnotations(destructive=True, open_world=True))
FETCH = ToolSpec("web_fetch", annotations=ToolAnnotations(read_only=True, open_world=True))
MCP = ToolSpec("mcp_mail_send", annotations=ToolAnnotations(open_world=True))
OWN = ToolSpec("roll_dice")
SPECS = (READ, WRITE, PATCH, SHELL, FETCH, MCP, OWN)


def action(policy: Any, spec: ToolSpec, **args: Any) -> str:
    return policy.decide(spec, args).action


# -- rules on arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("src/**", "src/a/b.py", True),
        ("src/**", "src", True),
        ("src/*", "src/a", True),
        ("src/*", "src/a/b", False),
        ("src/*.py", "src/a.py", True),
        ("**/x", "x", True),
        ("**/x", "a/b/x", True),
        ("**", "a/b", True),
        ("**", ".", True),
        # What is not the plain name of a path inside is not allowed by any pattern.
        ("src/**", "src/../secret", False),
        ("**", "../x", False),
        ("**", "/etc/passwd", False),
        ("**", "~/.ssh/id_rsa", False),
        ("src/**", "src//a", False),
        ("src/**", "src/./a", False),
        ("src/**", "src\\..\\x", False),
        ("src/**", "src/a\nb", False),
        ("src/**", "srcx/a", False),
        ("src/**", "SRC/a", False),
        ("https://docs.python.org/**", "https://docs.python.org/3/x", True),
        ("https://docs.python.org/**", "https://docs.python.org.evil/3", False),
        ("https://*.python.org/**", "https://evil.com#.python.org/x", False),
        ("https://*.python.org/**", "https://evil.com?.python.org/x", False),
        ("https://*.python.org/**", "https://u@x.python.org/x", False),
        ("https://*.python.org/**", "https://evil.com\\.python.org/x", False),
        ("https://a.b/c/**", "https://a.b/c/../d", False),
        ("https://a.b/c/**", "https://a.b/c/%2e%2e/d", False),
        ("**", "https://evil.com/", False),
    ],
)
def test_an_allow_rule_takes_only_what_is_plainly_inside(pattern: str, path: str, allowed: bool) -> None:
    policy = Policy("ask", (Rule("allow", "t", arguments={"p": pattern}),))
    assert action(policy, ToolSpec("t"), p=path) == ("allow" if allowed else "ask")


@pytest.mark.parametrize(
    "path",
    [
        *("secret/x", "./secret/x", "a/../secret/x", "secret//x", "SECRET/x", "/home/u/ws/secret/x", "secret"),
        *("secret\\x", "se\u200bcret/x", "\uff53ecret/x", "../ws/secret/x"),
    ],
)
def test_a_deny_rule_takes_every_way_to_write_it(path: str) -> None:
    policy = Policy("allow", (Rule("deny", "t", arguments={"p": "secret/**"}),))
    assert action(policy, ToolSpec("t"), p=path) == "deny"
    assert action(policy, ToolSpec("t"), p=["a", path]) == "deny"
    assert action(policy, ToolSpec("t"), p="src/a") == action(policy, ToolSpec("t"), q=path) == "allow"


def test_arguments_of_other_types_and_lists() -> None:
    policy = Policy("ask", (Rule("allow", "t", arguments={"n": "3", "p": "src/**"}),))
    assert action(policy, ToolSpec("t"), n=3, p=["src/a", "src/b"]) == "allow"
    assert action(policy, ToolSpec("t"), n=3, p=["src/a", "b"]) == "ask"
    assert action(policy, ToolSpec("t"), n=4, p="src/a") == "ask"
    assert action(policy, ToolSpec("t"), n=3, p=[]) == action(policy, ToolSpec("t"), n=3) == "ask"
    deep = Policy("allow", (Rule("deny", "t", arguments={"o": "**secret**"}),))
    assert action(deep, ToolSpec("t"), o={"k": ["secret"]}) == "deny"


def test_a_rule_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="'alow'"):
        Rule("alow")  # pyright: ignore[reportArgumentType] - that is the case
    with pytest.raises(ConfigError, match="It is a list"):
        Rule("allow", command="git status")
    assert Rule("allow", "shell", command=["git", "status"]).command == ("git", "status")


@given(st.text(max_size=40), st.text(max_size=20))
def test_matching_never_fails_and_deny_is_never_narrower_than_allow(value: str, pattern: str) -> None:
    spec, args = ToolSpec("t"), {"p": value}
    allowed = Policy("ask", (Rule("allow", "t", arguments={"p": pattern}),)).decide(spec, args).action
    denied = Policy("allow", (Rule("deny", "t", arguments={"p": pattern}),)).decide(spec, args).action
    assert allowed != "allow" or denied == "deny"


# -- layers ------------------------------------------------------------------------------------------------------------

LAYERS: tuple[LayerName, ...] = get_args(LayerName)


def make_rule(action: Action, tool: str, arguments: dict[str, str]) -> Rule:
    return Rule(action, tool, arguments=arguments)


rules = st.builds(
    make_rule,
    st.sampled_from(get_args(Action)),
    st.sampled_from(["write_file", "*", "write_*", "shell"]),
    st.sampled_from([{}, {"path": "src/**"}, {"path": "docs/**"}]),
)


@given(st.lists(st.tuples(st.sampled_from(LAYERS), rules), max_size=6), st.randoms(use_true_random=False))
def test_s18_the_strictest_rule_wins_in_every_layer_and_order(found: list[tuple[Any, Rule]], random: Any) -> None:
    args = {"path": "src/a", "content": ""}
    ranks = [
        RANK[rule.action]
        for layer, rule in found
        if rule.tool != "shell"
        and rule.arguments.get("path") != "docs/**"
        and not (layer == "project" and rule.action == "allow")
    ]
    shuffled = random.sample(found, len(found))
    for mode in ("ask", "auto-edit"):
        answers: set[Action] = {
            Permissions(mode, [Layer(layer, Policy(rules=(rule,))) for layer, rule in each]).decide(WRITE, args).action
            for each in (found, shuffled)
        }
        expected = max(ranks) if ranks else RANK["ask"] if mode == "ask" else RANK["allow"]
        assert {RANK[each] for each in answers} == {expected}
    in_one = [rule for layer, rule in found if layer != "project"]
    for order in itertools.islice(itertools.permutations(in_one), 24):
        assert (
            Policy("ask", order).decide(WRITE, args).action == Policy("ask", tuple(in_one)).decide(WRITE, args).action
        )


def tables(**layers: dict[str, Any]) -> list[PolicyTable]:
    return [PolicyTable(name, f"{name}.toml", table) for name, table in layers.items()]  # pyright: ignore[reportArgumentType]


def test_s19_a_project_can_only_tighten() -> None:
    allow = {"action": "allow", "tool": "write_file"}
    loose = permissions_from(
        tables(
            user={"mode": "ask", "rule_of_two": True},
            project={"mode": "auto-edit", "rule_of_two": False, "rules": [allow], "default": "allow"},
        )
    )
    assert (loose.mode, loose.rule_of_two) == ("ask", True)
    assert action(loose, WRITE, path="a") == "ask"
    assert loose.notices == [
        "project.toml: mode 'auto-edit' is ignored: a project's file may only tighten.",
        "project.toml: rule_of_two = false is ignored: a project's file may only tighten.",
        "project.toml: allow 'write_file' is ignored: a project's file may only tighten.",
    ]
    deny = {"action": "deny", "tool": "write_file", "arguments": {"path": "gen/**"}}
    tight = permissions_from(
        tables(user={"mode": "auto-edit", "rules": [allow]}, project={"mode": "ask", "rules": [deny]})
    )
    assert tight.mode == "ask" and tight.notices == []
    assert action(tight, WRITE, path="gen/a") == "deny" and action(tight, WRITE, path="a") == "allow"


@given(st.lists(rules, max_size=4), st.lists(rules, max_size=4), st.sampled_from(get_args(Action)))
@settings(max_examples=60)
def test_s19_no_project_makes_any_call_easier(own: list[Rule], project: list[Rule], default: Action) -> None:
    alone = [Layer("user", Policy(rules=tuple(own)))]
    both = [*alone, Layer("project", Policy(default, tuple(project)))]
    for mode, spec, path in itertools.product(("plan", "ask", "auto-edit"), SPECS, ("src/a", "docs/b")):
        before = Permissions(mode, alone).decide(spec, {"path": path})
        after = Permissions(mode, both).decide(spec, {"path": path})
        assert RANK[after.action] >= RANK[before.action]


def test_the_managed_layer_and_the_flag() -> None:
    layers = tables(
        managed={"mode": "plan", "rules": [{"action": "deny", "tool": "shell"}]}, user={"mode": "auto-edit"}
    )
    assert permissions_from(layers).mode == "plan"
    asked = permissions_from(layers, mode="auto-edit")
    asked.add(Rule("allow", "shell"))
    assert asked.mode == "auto-edit" and action(asked, SHELL, command="ls") == "deny"
    with pytest.raises(ConfigError, match=r"user.toml: \[policy\]: .*`aktion`"):
        permissions_from(tables(user={"rules": [{"aktion": "allow"}]}))


# -- modes -------------------------------------------------------------------------------------------------------------

EXPECTED: dict[tuple[Mode, bool], str] = {
    #                     read   write  patch  shell  fetch  mcp    own
    ("plan", False): "           allow  deny   deny   deny   ask    deny   deny",
    ("ask", False): "            allow  ask    ask    ask    ask    ask    ask",
    ("auto-edit", False): "      allow  allow  allow  ask    ask    ask    ask",
    ("sandboxed-auto", False): " allow  allow  allow  ask    ask    ask    ask",
    ("sandboxed-auto", True): "  allow  allow  allow  allow  ask    ask    ask",
    ("auto-edit", True): "       allow  allow  allow  ask    ask    ask    ask",
    ("plan", True): "            allow  deny   deny   deny   ask    deny   deny",
    ("yolo", False): "           allow  allow  allow  allow  allow  allow  allow",
}
ARGS = {"path": "src/a", "patch": "*** Update File: src/a\n", "command": "make | tee x"}


@pytest.mark.parametrize(("mode", "confined"), EXPECTED)
def test_what_each_mode_allows(mode: Mode, confined: bool) -> None:
    permissions = Permissions(mode, confined=lambda: confined, protected=is_protected, yolo=mode == "yolo")
    found = [permissions.decide(spec, {} if spec is READ else ARGS).action for spec in SPECS]
    assert found == EXPECTED[mode, confined].split()
    # What may be started without a look is never asked about.
    for spec, answer in zip(SPECS, found, strict=True):
        assert permissions.may_ask([spec]) or answer == "allow"


def test_plan_tells_the_model_to_present_a_plan_whatever_a_rule_allows() -> None:
    permissions = Permissions("plan", [Layer("user", Policy(rules=(Rule("allow"),)))])
    decision = permissions.decide(WRITE, {"path": "a"})
    assert decision.action == "deny" and "present a plan" in decision.reason
    permissions.mode = "auto-edit"
    assert action(permissions, WRITE, path="a") == "allow"


def test_the_mode_follows_the_sandbox_as_it_is_at_the_time() -> None:
    state = {"real": False}
    permissions = Permissions("sandboxed-auto", confined=lambda: state["real"])
    assert action(permissions, SHELL, command="make") == "ask"
    state["real"] = True
    assert action(permissions, SHELL, command="make") == "allow"


def test_modes_that_are_none_or_not_granted() -> None:
    with pytest.raises(ConfigError, match="no mode 'fast'"):
        Permissions("fast")  # pyright: ignore[reportArgumentType] - that is the case
    permissions = Permissions()
    with pytest.raises(ConfigError, match="not granted"):
        permissions.mode = "yolo"
    assert permissions.mode == "ask"


@pytest.mark.parametrize("mode", ["ask", "auto-edit", "sandboxed-auto", "yolo"])
@pytest.mark.parametrize(
    "path",
    [
        *(".git/hooks/pre-commit", ".git/config", ".windlass/x", "AGENTS.md", ".mcp.json", ".envrc", "a/.bashrc"),
        *(".vscode/tasks.json", "windlass.toml", ".GIT/config"),
    ],
)
def test_s12_protected_paths_are_asked_about_in_every_mode(mode: Mode, path: str) -> None:
    layers = [Layer("user", Policy(rules=(Rule("allow"),)))]
    permissions = Permissions(mode, layers, confined=True, protected=is_protected, yolo=True)
    calls = [
        (WRITE, {"path": path}),
        (PATCH, {"patch": f"*** Begin Patch\n*** Update File: src/ok\n*** Add File: {path}\n"}),
        (PATCH, {"patch": f"--- a/src/ok\n+++ b/{path}\n"}),
        (PATCH, {"patch": f"*** Update File: src/ok\n*** Move to: {path}\n"}),
    ]
    for spec, args in calls:
        decision = permissions.decide(spec, args)
        assert decision.action == "ask" and decision.reason.startswith(f"{path} is protected: "), (spec.name, decision)
    assert action(permissions, PATCH, text="?") == "ask"
    assert action(permissions, READ, path=path) == action(permissions, WRITE, path="src/a") == "allow"
    if mode != "yolo":
        # Without a sandbox, a command that names one as well.
        cp = Rule("allow", command=["cp"])
        loose = Permissions(mode, [Layer("user", Policy(rules=(cp,)))], protected=is_protected)
        for line in (f"cp a {path}", f"cp -t{path} a", f"cp --target-directory={path} a"):
            assert action(loose, SHELL, command=line) == "ask"
        assert action(loose, SHELL, command="cp a b") == "allow"


def test_deny_stays_deny_for_protected_paths() -> None:
    permissions = Permissions(
        "ask", [Layer("user", Policy(rules=(Rule("deny", "write_file"),)))], protected=is_protected
    )
    assert action(permissions, WRITE, path=".git/config") == "deny"


def test_the_names_of_the_built_in_tools_are_known() -> None:
    """One that changes files or runs commands under a name that the modes do not know would be asked about always."""
    for name in registry.names("tools"):
        spec = registry.resolve("tools", name).spec
        kind = Permissions().kind(spec)
        if spec.annotations.destructive and not spec.annotations.open_world:
            assert kind == "edit" and name in EDITS, name
        if "command" in spec.input_schema.get("properties", {}):
            assert kind == "command" and name in COMMANDS, name


# -- child runs --------------------------------------------------------------------------------------------------------

modes = st.sampled_from(MODES)


def make_holder(mode: Mode, found: list[Rule], confined: bool) -> Permissions:
    layers = [Layer("user", Policy(rules=tuple(found)))]
    return Permissions(mode, layers, confined=confined, yolo=True, protected=is_protected)


holders = st.builds(make_holder, modes, st.lists(rules, max_size=3), st.booleans())
deciders = st.one_of(
    holders, st.builds(Policy, st.sampled_from(get_args(Action)), st.lists(rules, max_size=3).map(tuple))
)


@given(deciders, deciders, deciders)
@settings(max_examples=80)
def test_s26_a_child_is_never_looser_than_its_parent(parent: Any, child: Any, grandchild: Any) -> None:
    under = narrowed(child, parent)
    below = narrowed(grandchild, under)
    for spec, path in itertools.product(SPECS, ("src/a", "docs/b", ".git/config")):
        args = {"path": path, "command": "ls"}
        ranks = [RANK[each.decide(spec, args).action] for each in (parent, under, below)]
        assert ranks == sorted(ranks)
        assert ranks[1] == max(ranks[0], RANK[child.decide(spec, args).action])
        for each, rank in zip((parent, under, below), ranks, strict=True):
            assert rank == 0 or each.may_ask([spec])


def test_s26_a_child_follows_its_parents_mode() -> None:
    parent = Permissions("sandboxed-auto", confined=True)
    child = parent.under(parent)
    other = narrowed(Policy("allow"), parent)
    assert action(child, SHELL, command="ls") == action(other, SHELL, command="ls") == "allow"
    parent.mode = "plan"
    assert action(child, SHELL, command="ls") == action(other, SHELL, command="ls") == "deny"
    assert live(other) is parent and live(child) is child and live(Policy()) is None
    assert narrowed(parent, parent) is parent


# -- the rule of two, and explaining -----------------------------------------------------------------------------------


def test_s82_the_third_of_three_is_asked_about() -> None:
    permissions = Permissions("ask", [Layer("user", Policy(rules=(Rule("allow"),)))], confined=True)
    seen: dict[str, str] = {}
    steps: list[tuple[ToolSpec, dict[str, Any], str | None]] = [
        (READ, {"path": "src/a"}, None),
        (READ, {"path": "config/.env"}, None),
        (FETCH, {"url": "https://x"}, None),
        (SHELL, {"command": "curl x"}, None),  # in a sandbox it sends nothing
        (FETCH, {"url": "https://y"}, "ask"),
        (MCP, {"text": "hello"}, "ask"),
        (WRITE, {"path": "a"}, None),
    ]
    for spec, args, expected in steps:
        gated = permissions.gate(spec, args, seen)
        assert (gated and gated.action) == expected, spec.name
        for trait, why in permissions.traits(spec, args).items():
            seen.setdefault(trait, why)
    decision = permissions.gate(MCP, {}, seen)
    assert decision is not None and decision.anew
    assert decision.reason == (
        "rule of two: mcp_mail_send can send data out, web_fetch brought text from outside, and config/.env was read"
    )
    lines = permissions.explain(MCP, {}, seen)
    assert (
        lines[0].startswith("ask: rule of two: ") and lines[-1] == "what would allow it: a person's answer, each time"
    )
    permissions.rule_of_two = False
    assert permissions.gate(MCP, {}, seen) is None


@pytest.mark.parametrize(
    "path",
    [".env", "a/.env.local", "~/.ssh/id_ed25519", ".aws/config", "/home/u/.config/windlass/credentials/openai.json",
     ".credentials.json", "/home/u/.codex/auth.json", "deploy.pem", "secrets.yaml", ".config/gcloud/x"],
)  # fmt: skip
def test_s82_files_that_hold_secrets_are_known_by_their_names(path: str) -> None:
    assert Permissions("ask").traits(READ, {"path": path}) == {"secret": f"{path} was read"}


@pytest.mark.parametrize("path", ["src/env.py", "secretary.txt", "docs/credentials-howto.md", "author.json", "key"])
def test_s82_and_others_are_not(path: str) -> None:
    assert Permissions("ask").traits(READ, {"path": path}) == {}


def test_s82_a_command_without_a_sandbox_reads_and_sends() -> None:
    permissions = Permissions("ask", confined=False)
    assert permissions.gate(SHELL, {"command": "ls"}, {}) is None
    assert permissions.gate(SHELL, {"command": "ls"}, {"untrusted": "a page"}) is not None


def test_it_explains_itself() -> None:
    layers = [
        Layer("user", Policy(rules=(Rule("allow", "shell", command=["git", "status"]),)), "~/windlass.toml"),
        Layer(
            "project", Policy(rules=(Rule("deny", "shell", "no pushing", command=["git", "push"]),)), "windlass.toml"
        ),
    ]
    permissions = Permissions("ask", layers)
    assert permissions.explain(SHELL, {"command": "git push"})[:2] == ["deny: no pushing", "mode: ask"]
    text = "\n".join(permissions.explain(SHELL, {"command": "git status | cat"}))
    assert "ask: project: rule deny 'shell' command 'git push' may apply: the line is not proven not to hold it" in text
    assert (
        "user: allow 'shell' command 'git status' is not used: the line is not proven to be one plain command" in text
    )
    assert "what would allow it: a person's answer, or taking that rule out" in text
    assert Policy("ask").explain(WRITE, {}) == ["ask: it may change things", "default: ask"]
    useless = Permissions("ask", [Layer("user", Policy(rules=(Rule("allow", command=["bash"]),)))])
    assert useless.notices == [
        "user: allow '*' command 'bash' allows nothing: bash runs other commands: no prefix of its words says which."
    ]


def test_the_digest_is_of_the_exact_call() -> None:
    one, two = {"a": 1, "b": [2]}, {"b": [2], "a": 1}
    assert call_digest("t", one) == call_digest("t", two) and call_hash("t", one) == call_hash("t", two)
    assert len({call_hash(name, args) for name in ("t", "u") for args in (one, {"a": 1}, {"a": "1", "b": [2]})}) == 6
    assert Decision("allow", "x") == Decision("allow", "x", ruled=False, anew=False)
