"""What tools did to files, turn by turn: kept before it happens, taken back and done again.

A file tool puts both contents of a change on record before it writes (`keep_change`): the contents go to the store's
`blobs`, once each, then the row `file.changed`, then the file is written. Whatever a crash leaves, the row says what
the file was; undo compares what is there now with what was there before and after, so a change that never happened
is nothing to undo. Nothing here sees what a shell command does to files: undo covers the file tools only, and refuses
where a file is not as the agent left it.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct
from msgspec.structs import replace

from windlass.agent.ledger import Ledger, settled
from windlass.core.errors import SessionError, UndoError, WorkspaceError
from windlass.core.events import Event, FileChanged, MessageAdded
from windlass.core.ports import Blobs, Workspace

__all__ = [
    "Change",
    "Direction",
    "Edit",
    "EditedTurn",
    "FileHistory",
    "Step",
    "Virtual",
    "apply_steps",
    "content",
    "keep_change",
    "keeps_files",
    "move_files",
    "named",
    "net_changes",
    "plan_steps",
    "record_start",
    "restore_files",
]

Direction = Literal["undone", "redone"]


@runtime_checkable
class Virtual(Protocol):
    """A workspace that lives in memory only: its session's ledger brings its files back.

    `snapshot` gives all files; `restore` replaces them (`start` are the files that `changed` compares with) and raises
    WorkspaceError where something else was done here already; `blank` makes an empty one of the same kind.
    """

    def snapshot(self) -> dict[str, bytes]: ...
    def restore(self, files: Mapping[str, bytes], start: Mapping[str, bytes]) -> None: ...
    def blank(self) -> Workspace: ...


class Change(Struct, frozen=True):
    """One file before and after; None: there was no file."""

    path: str
    before: bytes | None
    after: bytes | None


class Edit(Struct, frozen=True):
    """One change as the ledger has it: SHA-256 before and after, None for no file."""

    path: str
    before: str | None
    after: str | None


class EditedTurn(Struct):
    """The changes that one answer's calls made; `pos` is the answer's row, `run` its run."""

    pos: int
    run: str
    edits: list[Edit]
    undone: bool = False


class FileHistory:
    """The fold of a session's `file.changed` rows. A rewind of the conversation alone does not touch it."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.turns: list[EditedTurn] = []
        #: What each file held at last, and when a virtual workspace began; None: deleted.
        self.files: dict[str, str | None] = {}
        self.start: dict[str, str | None] = {}
        #: Whether anything is on record at all.
        self.recorded = False
        answer, run = -1, ""
        for pos, event in enumerate(events):
            if isinstance(event, MessageAdded) and event.message.role == "assistant":
                answer, run = pos, event.run_id
            elif isinstance(event, FileChanged):
                self._take(event, answer, run)

    def _take(self, event: FileChanged, answer: int, run: str) -> None:
        self.recorded = True
        self.files[event.path] = event.after
        if event.status == "initial":
            self.start[event.path] = event.after
        elif event.status == "done":
            # What was undone before a new change cannot be done again.
            self.turns = [turn for turn in self.turns if not turn.undone]
            if not self.turns or self.turns[-1].pos != answer:
                self.turns.append(EditedTurn(answer, run, []))
            self.turns[-1].edits.append(Edit(event.path, event.before, event.after))
        elif event.status == "failed":
            self.files[event.path] = event.before
            self._retract(Edit(event.path, event.before, event.after))
        else:
            undone = event.status == "undone"
            for turn in self.turns:
                if event.turn is not None and (turn.pos >= event.turn if undone else turn.pos <= event.turn):
                    turn.undone = undone

    def _retract(self, edit: Edit) -> None:
        for turn in reversed(self.turns):
            if edit in turn.edits:
                turn.edits.reverse()
                turn.edits.remove(edit)
                turn.edits.reverse()
                break
        self.turns = [turn for turn in self.turns if turn.edits]

    def last(self, count: int | None) -> list[EditedTurn]:
        """Return the last `count` turns that changed files and stand; None: those of the last run that did."""
        standing = [turn for turn in self.turns if not turn.undone]
        if count is None:
            return [turn for turn in standing if turn.run == standing[-1].run]
        return standing[-count:] if count > 0 else []

    def next_undone(self, count: int) -> list[EditedTurn]:
        """Return the first `count` turns that were undone, in order."""
        return [turn for turn in self.turns if turn.undone][: max(count, 0)]

    def since(self, pos: int) -> list[EditedTurn]:
        """Return the turns from row `pos` on that stand."""
        return [turn for turn in self.turns if turn.pos >= pos and not turn.undone]


# -- before a change ---------------------------------------------------------------------------------------------------


def named(path: str, workspace: Workspace | None) -> str:
    """Return a path as the ledger names it, so that one file has one name: relative, without `.` and `..`."""
    root = "" if workspace is None else f"{workspace.root.rstrip('/')}/"
    if path.startswith("/") and path.startswith(root):
        path = path.removeprefix(root)
    return posixpath.normpath(path)


async def keep_change(
    ledger: Ledger, call_id: str, path: str, before: bytes | None, after: bytes | None
) -> FileChanged:
    """Keep both contents, then the row, and return its event. Raises StoreError."""
    hashes = [None if data is None else await _keep(ledger, data) for data in (before, after)]
    change = FileChanged(path=path, call_id=call_id, before=hashes[0], after=hashes[1])
    try:
        await ledger.commit([change])
    except asyncio.CancelledError:
        # The row is kept all the same, and what it announces will not happen.
        await settled(ledger.commit([replace(change, status="failed")]))
        raise
    return change


async def record_start(ledger: Ledger, files: Mapping[str, bytes]) -> None:
    """Keep the files that a virtual workspace begins with, in one commit."""
    rows = [FileChanged(path=path, after=await _keep(ledger, data), status="initial") for path, data in files.items()]
    if rows:
        await ledger.commit(rows)


def _blobs(ledger: Ledger) -> Blobs | None:
    return getattr(ledger.store, "blobs", None)


async def _keep(ledger: Ledger, data: bytes) -> str:
    blobs = _blobs(ledger)
    if blobs is None:
        return hashlib.sha256(data).hexdigest()
    return await blobs.put(ledger.session_id, data, tenant=ledger.tenant)


async def content(ledger: Ledger, sha256: str | None, path: str) -> bytes | None:
    """Return a kept content, None for no file. Raises UndoError when it was not kept."""
    if sha256 is None:
        return None
    blobs = _blobs(ledger)
    data = None if blobs is None else await blobs.get(ledger.session_id, sha256, tenant=ledger.tenant)
    if data is None:
        raise UndoError(
            f"The content of {path} was not kept.",
            paths=[path],
            hint="Its store, or the tool that wrote it, keeps none.",
        )
    return data


# -- back and forth ----------------------------------------------------------------------------------------------------


class Step(Struct, frozen=True):
    """What is to become of one file: from what it is `now` to `to` (SHA-256, None for no file)."""

    path: str
    now: str | None
    to: str | None
    #: The content now, kept where it is nobody's that the ledger knows.
    foreign: bytes | None = None


async def plan_steps(
    workspace: Workspace, turns: Sequence[EditedTurn], *, forward: bool = False, force: bool = False
) -> list[Step]:
    """Compare every file of `turns` with what the ledger says of it, and say what each is to become.

    Raises UndoError naming the files that somebody else has changed since, unless `force`; nothing is written here.
    """
    edits: dict[str, list[Edit]] = {}
    for turn in turns:
        for edit in turn.edits:
            edits.setdefault(edit.path, []).append(edit)
    steps: list[Step] = []
    drifted: list[str] = []
    for path, chain in edits.items():
        data = await _now(workspace, path)
        now = None if data is None else hashlib.sha256(data).hexdigest()
        to, foreign = _walk(chain, now, forward=forward)
        if foreign:
            drifted.append(path)
        steps.append(Step(path, now, to, data if foreign else None))
    if drifted and not force:
        raise UndoError(
            f"Changed since by somebody else: {', '.join(sorted(drifted))}. Nothing was restored.",
            paths=sorted(drifted), hint="Look at them, then use force to overwrite them all the same.",
        )  # fmt: skip
    return steps


def _walk(chain: Sequence[Edit], now: str | None, *, forward: bool) -> tuple[str | None, bool]:
    """Follow a file's changes from what is there now; True when it was, somewhere, neither before nor after."""
    state, foreign = now, False
    for edit in chain if forward else reversed(chain):
        here, there = (edit.before, edit.after) if forward else (edit.after, edit.before)
        # Already there: this change never happened, or was taken back before a crash.
        if state not in (here, there):
            foreign = True
        state = there
    return state, foreign


async def _now(workspace: Workspace, path: str) -> bytes | None:
    try:
        return await workspace.read(path)
    except WorkspaceError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return None
        raise UndoError(f"{path} cannot be read: {error.message} Nothing was restored.", paths=[path]) from error


async def apply_steps(ledger: Ledger, workspace: Workspace, steps: Sequence[Step]) -> None:
    """Write every file, each atomically and only if it still is what the plan saw.

    Contents are fetched before the first write. Raises UndoError saying what was restored when one fails in the middle:
    nothing is on record then, and the same call again does the rest.
    """
    wanted = {step.path: await content(ledger, step.to, step.path) for step in steps if step.now != step.to}
    for step in steps:
        if step.foreign is not None:
            await _keep(ledger, step.foreign)
    restored: list[str] = []
    for step in steps:
        if step.path not in wanted:
            continue
        data = wanted[step.path]
        try:
            await _write(workspace, step, data)
        except WorkspaceError as error:
            left = sorted(wanted.keys() - set(restored))
            raise UndoError(
                f"Stopped at {step.path}: {error.message} Restored: {', '.join(restored) or 'nothing'}; "
                f"not restored: {', '.join(left)}.",
                paths=left, restored=restored, hint="Mend the cause and do it again: what is restored stays so.",
            ) from error  # fmt: skip
        restored.append(step.path)


async def _write(workspace: Workspace, step: Step, data: bytes | None) -> None:
    if data is not None:
        await workspace.write(step.path, data, expected_sha256=step.now or "")
        return
    found = await _now(workspace, step.path)
    if found is None or hashlib.sha256(found).hexdigest() != step.now:
        raise WorkspaceError(f"{step.path} was changed meanwhile.", path=step.path)
    await workspace.delete(step.path)


async def net_changes(ledger: Ledger, turns: Sequence[EditedTurn]) -> list[Change]:
    """Return what `turns` together made of each file, sorted by path; files that are as before are left out."""
    first: dict[str, str | None] = {}
    last: dict[str, str | None] = {}
    for turn in turns:
        for edit in turn.edits:
            first.setdefault(edit.path, edit.before)
            last[edit.path] = edit.after
    return [
        Change(path, await content(ledger, first[path], path), await content(ledger, last[path], path))
        for path in sorted(first)
        if first[path] != last[path]
    ]


def keeps_files(ledger: Ledger, workspace: Workspace | None) -> bool:
    """Tell whether this session's ledger brings the files of this workspace back."""
    return isinstance(workspace, Virtual) and _blobs(ledger) is not None


async def restore_files(ledger: Ledger, workspace: Workspace | None, events: Sequence[Event]) -> bool:
    """Put the files that the ledger has into a virtual workspace; False where it has none."""
    history = FileHistory(events)
    if not history.recorded or not isinstance(workspace, Virtual) or _blobs(ledger) is None:
        return False
    workspace.restore(await _contents(ledger, history.files), await _contents(ledger, history.start))
    return True


async def _contents(ledger: Ledger, kept: Mapping[str, str | None]) -> dict[str, bytes]:
    found = {path: await content(ledger, sha256, path) for path, sha256 in kept.items()}
    return {path: data for path, data in found.items() if data is not None}


async def move_files(
    ledger: Ledger, workspace: Workspace | None, turns: Sequence[EditedTurn], status: Direction, *, force: bool
) -> list[FileChanged]:
    """Take turns back, or do them again; returns the rows that say so, to be committed by the caller.

    Raises SessionError where there is no workspace or nothing is kept, UndoError as `plan_steps` and `apply_steps`.
    """
    if workspace is None:
        raise SessionError("This session has no workspace: there are no files to restore.")
    if _blobs(ledger) is None:
        raise SessionError("This session's store keeps no contents of files.", hint="Use memory or sqlite:PATH.")
    forward = status == "redone"
    steps = await plan_steps(workspace, turns, forward=forward, force=force)
    await apply_steps(ledger, workspace, steps)
    mark = turns[-1].pos if forward else turns[0].pos
    return [FileChanged(path=step.path, before=step.now, after=step.to, status=status, turn=mark) for step in steps]
