"""Who may do what: pure decisions about tool calls. Deny beats ask beats allow, whatever the order of the rules.

A policy forbids or asks; it is not the boundary (a workspace is). Asking a person is the `Approver` port, which apps
implement.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from windlass.agent.commands import prefix_refused, read_command
from windlass.agent.rules import COMMAND_ARGUMENTS, RANK, Action, Rule, command_of, match_rule, paths_of, rule_text
from windlass.core.errors import ConfigError
from windlass.core.request import ToolSpec

__all__ = [
    "MODES",
    "Decider",
    "Decision",
    "Layer",
    "Mode",
    "Permissions",
    "Policy",
    "Rule",
    "call_digest",
    "call_hash",
    "live",
    "narrowed",
    "stricter",
]

Mode = Literal["plan", "ask", "auto-edit", "sandboxed-auto", "yolo"]
#: The modes, the strictest first.
MODES: tuple[Mode, ...] = ("plan", "ask", "auto-edit", "sandboxed-auto", "yolo")
LayerName = Literal["managed", "user", "project", "session"]
#: The built-in tools that change files, and those that run commands, by their own names.
EDITS = frozenset({"write_file", "edit", "multi_edit", "apply_patch", "file", "notebook_edit"})
COMMANDS = frozenset({"shell", "process", "run_tests", "shell_start", "shell_input"})
PLAN = (
    "plan mode: nothing may be changed or run. Read what you need, then present a plan and stop; the person will say "
    "whether to go on"
)
_SECRET = re.compile(
    r"(?:^|/)(?:\.env(?:\.[^/]*)?|\.netrc|\.pgpass|\.npmrc|\.pypirc|\.git-credentials|\.credentials\.json|auth\.json"
    r"|id_(?:rsa|dsa|ecdsa|ed25519)[^/]*"
    r"|[^/]*\.(?:pem|key|p12|pfx|kdbx|keystore|jks)"
    r"|(?:credential|secret|password|token)s?(?:\.(?:json|ya?ml|toml|txt|ini|cfg|conf|xml|properties|csv))?)(?:/|$)"
    r"|(?:^|/)(?:\.ssh|\.aws|\.gnupg|\.kube|\.docker|\.config/(?:gcloud|gh)|\.local/share/keyrings)(?:/|$)",
    re.IGNORECASE,
)


class Decision(Struct, frozen=True):
    """The answer, and the rule, mode or default that gave it.

    `ruled` says that a rule gave it. `anew` asks again each time, also where this exact call was always allowed.
    """

    action: Action
    reason: str
    ruled: bool = False
    anew: bool = False


class Decider(Protocol):
    """What decides about calls: a `Policy`, or live `Permissions`."""

    def decide(self, spec: ToolSpec, args: dict[str, Any], /) -> Decision: ...
    def may_ask(self, specs: Sequence[ToolSpec], /) -> bool: ...


class Judged(Struct):
    """What rules say of one call: the decision of those that match (None: none does), and a line for each near one."""

    decision: Decision | None
    notes: list[str]


def judge(rules: Iterable[tuple[str, Rule]], spec: ToolSpec, args: dict[str, Any]) -> Judged:
    """Compare (layer, rule) pairs with a call; the strictest of those that match decides, in any order.

    A deny or ask rule that cannot be told not to match makes the call one to ask about.
    """
    best: Decision | None = None
    notes: list[str] = []
    for layer, rule in rules:
        match = match_rule(rule, spec.name, args)
        where = f"{layer}: " if layer else ""
        if match.how == "no":
            if fnmatch.fnmatchcase(spec.name, rule.tool):
                notes.append(f"{where}{rule_text(rule)} does not match: {match.why}")
            continue
        if match.how == "unproven" and rule.action == "allow":
            notes.append(f"{where}{rule_text(rule)} is not used: {match.why}")
            continue
        action: Action = rule.action if match.how == "yes" else "ask"
        reason = rule.reason or f"{where}rule {rule_text(rule)}"
        if match.how == "unproven":
            reason = f"{where}rule {rule_text(rule)} may apply: {match.why}"
        notes.append(f"{where}{rule_text(rule)} {'matches' if match.how == 'yes' else 'may match: ' + match.why}")
        if best is None or RANK[action] > RANK[best.action]:
            best = Decision(action, reason, ruled=True)
    return Judged(best, notes)


class _Both:
    """Two deciders at once: the stricter answer holds."""

    def __init__(self, child: Decider, parent: Decider) -> None:
        self.child, self.parent = child, parent

    def decide(self, spec: ToolSpec, args: dict[str, Any]) -> Decision:
        return stricter(self.child.decide(spec, args), self.parent.decide(spec, args))

    def may_ask(self, specs: Sequence[ToolSpec]) -> bool:
        return self.child.may_ask(specs) or self.parent.may_ask(specs)


def narrowed(child: Decider, parent: Decider) -> Decider:
    """Return what a child run is decided by: its own policy, and never looser than its parent's."""
    if child is parent:
        return parent
    return child.under(parent) if isinstance(child, Permissions) else _Both(child, parent)


def live(decider: Decider) -> Permissions | None:
    """Return the Permissions in a decider that may be several, None where there are none."""
    if isinstance(decider, Permissions):
        return decider
    return (live(decider.child) or live(decider.parent)) if isinstance(decider, _Both) else None


def stricter(first: Decision, second: Decision) -> Decision:
    """Return the stricter of two decisions, the first where they are equal."""
    return second if RANK[second.action] > RANK[first.action] else first


class Policy(Struct, frozen=True):
    """Rules over a default.

    `default` is what happens where no rule matches: allow (a program that embeds an agent chooses its tools itself),
    ask or deny; with ask, tools that say they only read are allowed.
    """

    default: Action = "allow"
    rules: tuple[Rule, ...] = ()

    def decide(self, spec: ToolSpec, args: dict[str, Any]) -> Decision:
        """Decide about one call."""
        found = judge([("", rule) for rule in self.rules], spec, args).decision
        return found if found is not None else self.fallback(spec)

    def fallback(self, spec: ToolSpec) -> Decision:
        """Return what holds where no rule matches."""
        if self.default == "ask" and spec.annotations.read_only and not spec.annotations.open_world:
            return Decision("allow", "it only reads")
        return Decision(self.default, "it may change things" if self.default == "ask" else f"default {self.default}")

    def explain(self, spec: ToolSpec, args: dict[str, Any]) -> list[str]:
        """Return the decision and why, a line each."""
        decision = self.decide(spec, args)
        return [
            f"{decision.action}: {decision.reason}",
            *judge([("", rule) for rule in self.rules], spec, args).notes,
            f"default: {self.default}",
        ]

    def may_ask(self, specs: Sequence[ToolSpec]) -> bool:
        """Tell whether any call of these tools could need more than an immediate yes."""
        if self.default == "allow" and all(rule.action == "allow" for rule in self.rules):
            return False
        return any(self._may_ask(spec) for spec in specs)

    def _may_ask(self, spec: ToolSpec) -> bool:
        about = [rule for rule in self.rules if fnmatch.fnmatchcase(spec.name, rule.tool)]
        if any(rule.action != "allow" for rule in about):
            return True
        return self.fallback(spec).action != "allow" and not any(rule.bare for rule in about)


def call_digest(name: str, args: dict[str, Any]) -> str:
    """Return the identity of one exact call, which *allow always* is bound to: its name and canonical arguments."""
    return f"{name} {msgspec.json.encode(args, order='deterministic').decode()}"


def call_hash(name: str, args: dict[str, Any]) -> str:
    """Return the SHA-256 of `call_digest` in hex: short enough to be shown, and to be compared with what ran."""
    return hashlib.sha256(call_digest(name, args).encode("utf-8", "surrogatepass")).hexdigest()


class Layer(Struct, frozen=True):
    """A policy and whose it is. A project's can only tighten: what it allows is not used."""

    name: LayerName
    policy: Policy
    origin: str = ""


class Permissions:
    """What may be done now: a mode that a person switches, over layers of rules. Accepted wherever a Policy is.

    - `plan`: only what reads; everything else is denied, with words that ask the model for a plan.
    - `ask`: what reads is allowed, everything else is asked about.
    - `auto-edit`: also the file tools, on paths that are not protected.
    - `sandboxed-auto`: also commands, while `confined` says that the workspace is a real sandbox.
    - `yolo`: everything that no rule forbids or asks about; only with `yolo=True`, which takes two flags.

    Rules come before the mode (deny, then ask, then allow, over all layers), except in `plan`. `protected` returns why
    a path is asked about even where edits are allowed. With `rule_of_two`, a conversation that has had untrusted input
    (web, MCP) and has read secrets is asked before it sends anything out. `notices` says what was not used.
    """

    def __init__(
        self,
        mode: Mode = "ask",
        layers: Sequence[Layer] = (),
        *,
        confined: Callable[[], bool] | bool = False,
        protected: Callable[[str], str | None] | None = None,
        rule_of_two: bool = True,
        yolo: bool = False,
        edits: Iterable[str] = EDITS,
        commands: Iterable[str] = COMMANDS,
        parent: Decider | None = None,
    ) -> None:
        self.layers = list(layers)
        self.rule_of_two, self.yolo, self.parent = rule_of_two, yolo, parent
        self._confined, self._protected = confined, protected
        self._edits, self._commands = frozenset(edits), frozenset(commands)
        #: What was left out before these permissions were made, for `notices`.
        self.ignored: list[str] = []
        self._mode: Mode = "ask"
        self.mode = mode

    @property
    def mode(self) -> Mode:
        """The mode; setting it holds from the next call on. Raises ConfigError for one that is none, or not granted."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in MODES:
            raise ConfigError(f"There is no mode {mode!r}.", hint=f"Modes: {', '.join(MODES[:-1])}.")
        if mode == "yolo" and not self.yolo:
            raise ConfigError("The mode yolo is not granted.", hint="It takes --yolo, and a sandbox or a container.")
        self._mode = mode

    @property
    def confined(self) -> bool:
        """True while commands run in a real sandbox."""
        return self._confined() if callable(self._confined) else self._confined

    @property
    def notices(self) -> list[str]:
        """What a person should hear: rules that a project's file may not set, and rules that can never match."""
        out = list(self.ignored)
        for layer in self.layers:
            whose = layer.origin or layer.name
            for rule in layer.policy.rules:
                if rule.action == "allow" and layer.name == "project":
                    out.append(f"{whose}: {rule_text(rule)} is ignored: a project's file may only tighten.")
                elif rule.action == "allow" and (why := never_allows(rule)):
                    out.append(f"{whose}: {rule_text(rule)} allows nothing: {why}.")
        return out

    def add(self, rule: Rule, layer: LayerName = "session") -> None:
        """Add a rule, by default for as long as these permissions live."""
        self.layers.append(Layer(layer, Policy(rules=(rule,))))

    def under(self, parent: Decider) -> Permissions:
        """Return the same permissions for a child run: never looser than `parent` is at the time of each call."""
        return Permissions(
            self.mode,
            self.layers,
            confined=self._confined,
            protected=self._protected,
            rule_of_two=self.rule_of_two,
            yolo=self.yolo,
            edits=self._edits,
            commands=self._commands,
            parent=parent,
        )

    # -- deciding --------------------------------------------------------------------------------------------------

    def decide(self, spec: ToolSpec, args: dict[str, Any]) -> Decision:
        """Decide about one call."""
        own = self._guarded(self._decide(spec, args), spec, args)
        return own if self.parent is None else stricter(own, self.parent.decide(spec, args))

    def _decide(self, spec: ToolSpec, args: dict[str, Any]) -> Decision:
        kind = self.kind(spec)
        if self.mode == "plan" and kind not in ("read", "look"):
            return Decision("deny", PLAN)
        return judge(self._rules(), spec, args).decision or self._fallback(spec, kind)

    def _rules(self) -> Iterable[tuple[str, Rule]]:
        for layer in self.layers:
            for rule in layer.policy.rules:
                if layer.name != "project" or rule.action != "allow":
                    yield layer.name, rule

    def _fallback(self, spec: ToolSpec, kind: str) -> Decision:
        answer = self._by_mode(kind)
        for layer in self.layers:
            default = layer.policy.fallback(spec)
            answer = stricter(answer, Decision(default.action, f"{layer.name}: {default.reason}"))
        return answer

    def _by_mode(self, kind: str) -> Decision:
        mode = self.mode
        if kind == "read":
            return Decision("allow", "it only reads")
        if mode == "yolo":
            return Decision("allow", "mode yolo")
        if kind == "edit" and mode in ("auto-edit", "sandboxed-auto"):
            return Decision("allow", f"mode {mode} allows edits of files in the workspace")
        if kind == "command" and mode == "sandboxed-auto":
            if self.confined:
                return Decision("allow", "mode sandboxed-auto: commands run in the sandbox")
            return Decision("ask", "mode sandboxed-auto: the workspace is not a sandbox, so commands are asked about")
        what = {
            "edit": "it changes files",
            "command": "it runs a command",
            "look": "it reads from outside, and can send data there",
            "outside": "it reaches outside the workspace",
        }.get(kind, "it may change things")
        return Decision("ask", what)

    def _guarded(self, decision: Decision, spec: ToolSpec, args: dict[str, Any]) -> Decision:
        kind, paths = self.kind(spec), paths_of(args)
        settled = decision.action == "deny" or (decision.action == "ask" and decision.ruled)
        if self._protected is None or kind == "read" or settled:
            return decision
        if kind == "edit" and not paths and decision.action == "allow":
            return Decision("ask", "it is not known which files it changes")
        if kind == "command" and not self.confined and isinstance(command := command_of(args), (str, tuple)):
            argv = read_command(command).argv if isinstance(command, str) else command
            # A path may follow an option without a blank: -tDIR, --target=DIR.
            paths = [word for part in argv or () for word in (part, part.rpartition("=")[2], part[2:]) if word]
        return self.protects(paths) or decision

    def protects(self, paths: Iterable[str]) -> Decision | None:
        """Return a decision to ask where one of these paths is protected, else None."""
        protected = self._protected
        found = ((path, protected(path)) for path in paths) if protected is not None else ()
        return next((Decision("ask", f"{path} is protected: {why}") for path, why in found if why), None)

    def kind(self, spec: ToolSpec) -> Literal["read", "edit", "command", "look", "outside", "other"]:
        """Tell what a tool does, by its name and annotations; `look` reads from outside."""
        if spec.name in self._commands:
            return "command"
        notes = spec.annotations
        if notes.open_world:
            return "look" if notes.read_only else "outside"
        if notes.read_only:
            return "read"
        return "edit" if spec.name in self._edits else "other"

    def may_ask(self, specs: Sequence[ToolSpec]) -> bool:
        """Tell whether any call of these tools could need more than an immediate yes, or must be remembered."""
        if self.parent is not None and self.parent.may_ask(specs):
            return True
        kinds = {self.kind(spec) for spec in specs}
        if self.rule_of_two and kinds & {"look", "outside", "command"}:
            return True
        if any(self._fallback(spec, self.kind(spec)).action != "allow" for spec in specs):
            return True
        if self._protected is not None and kinds - {"read"}:
            return True
        return any(
            rule.action != "allow" and fnmatch.fnmatchcase(spec.name, rule.tool)
            for _, rule in self._rules()
            for spec in specs
        )

    # -- the rule of two -------------------------------------------------------------------------------------------

    def traits(self, spec: ToolSpec, args: dict[str, Any]) -> dict[str, str]:
        """Return what a call brings into a conversation and why: `untrusted` input, `secret` data, `egress`."""
        kind = self.kind(spec)
        out: dict[str, str] = {}
        if kind in ("look", "outside"):
            out["untrusted"] = f"{spec.name} brought text from outside"
            out["egress"] = f"{spec.name} can send data out"
        if kind == "command" and not self.confined:
            out["secret"] = f"{spec.name} ran without a sandbox, where it can read what you can"
            out["egress"] = f"{spec.name} runs without a sandbox, and can send data out"
        for path in paths_of(args):
            if _SECRET.search(path):
                out["secret"] = f"{path} was read"
        return out

    def gate(self, spec: ToolSpec, args: dict[str, Any], seen: Mapping[str, str]) -> Decision | None:
        """Return a decision to ask where a call would be the third of untrusted input, secrets and sending out.

        `seen` holds the traits of the calls so far. Source: Meta, "Agents Rule of Two" (October 2025).
        """
        own = self.traits(spec, args)
        secret = seen.get("secret") or own.get("secret")
        if not self.rule_of_two or "egress" not in own or "untrusted" not in seen or not secret:
            return None
        why = f"{own['egress']}, {seen['untrusted']}, and {secret}"
        return Decision("ask", f"rule of two: {why}", anew=True)

    # -- explaining ------------------------------------------------------------------------------------------------

    def explain(self, spec: ToolSpec, args: dict[str, Any], seen: Mapping[str, str] | None = None) -> list[str]:
        """Return the decision, the layers and rules behind it, and what would allow the call, a line each."""
        decision = self.decide(spec, args)
        if decision.action == "allow" and seen and (gated := self.gate(spec, args, seen)):
            decision = gated
        kind = self.kind(spec)
        lines = [f"{decision.action}: {decision.reason}", f"mode: {self.mode}"]
        lines.append(f"kind: {_KINDS[kind]}" + ("" if kind != "command" else self._sandbox()))
        lines.extend(f"rule: {note}" for note in judge(self._rules(), spec, args).notes)
        lines.extend(f"notice: {notice}" for notice in self.notices)
        if traits := self.traits(spec, args):
            lines.append(f"rule of two ({'on' if self.rule_of_two else 'off'}): {'; '.join(traits.values())}")
        if self.parent is not None:
            lines.append("parent: this is a child run; it may do no more than its parent")
        if decision.action != "allow":
            lines.append(f"what would allow it: {self._remedy(decision, kind)}")
        return lines

    def _sandbox(self) -> str:
        return ", in a sandbox" if self.confined else ", without a sandbox"

    def _remedy(self, decision: Decision, kind: str) -> str:
        if self.mode == "plan" and kind not in ("read", "look"):
            return "another mode"
        if decision.action == "deny":
            return "taking that rule out; no other rule and no answer can overrule it"
        if decision.anew or "protected" in decision.reason:
            return "a person's answer, each time" if decision.anew else "a person's answer"
        if decision.ruled:
            return "a person's answer, or taking that rule out"
        rule = "a rule of yours that allows it"
        mode = {"edit": ", or the mode auto-edit", "command": ", or the mode sandboxed-auto in a sandbox"}.get(kind, "")
        return f"a person's answer, {rule}{mode}"


_KINDS = {
    "read": "reads",
    "edit": "changes files in the workspace",
    "command": "runs commands",
    "look": "reads from outside (open world)",
    "outside": "acts outside (open world)",
    "other": "not stated to be read-only",
}


def never_allows(rule: Rule) -> str:
    """Return why an allow rule can match no call, '' where it can."""
    if rule.command:
        return prefix_refused(rule.command, rule.command)
    wide = next(
        (name for name, text in rule.arguments.items() if name in COMMAND_ARGUMENTS and {"*", "?"} & set(text)), ""
    )
    return f"a pattern with wildcards may not allow a {wide}" if wide else ""
