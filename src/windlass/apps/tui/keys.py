"""What the keys do."""

from __future__ import annotations

from prompt_toolkit.filters import Condition, is_searching, vi_insert_mode
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from windlass.apps.tui.attach import pasted_image
from windlass.apps.tui.live import LiveScreen
from windlass.core.text import strip_escapes

__all__ = ["bindings"]


def bindings(screen: LiveScreen) -> KeyBindings:
    """Make the bindings of a screen."""
    keys = KeyBindings()
    _question_keys(keys, screen)
    _choice_keys(keys, screen)
    _input_keys(keys, screen)
    _run_keys(keys, screen)
    return keys


def _question_keys(keys: KeyBindings, screen: LiveScreen) -> None:
    asking = Condition(lambda: screen.question is not None)

    @keys.add(Keys.Any, filter=asking, eager=True)
    def _(event: KeyPressEvent) -> None:
        screen.answer(event.data.lower() if len(event.data) == 1 else "")

    # A paste is no answer, whatever is in it.
    @keys.add(Keys.BracketedPaste, filter=asking, eager=True)
    def _(_event: KeyPressEvent) -> None:
        screen.touched()

    @keys.add("escape", filter=asking, eager=True)
    def _(_event: KeyPressEvent) -> None:
        screen.answer("escape")

    @keys.add("c-c", filter=asking, eager=True)
    def _(_event: KeyPressEvent) -> None:
        screen.view.interrupt()


def _choice_keys(keys: KeyBindings, screen: LiveScreen) -> None:
    choosing = Condition(lambda: screen.choice is not None)

    def move(by: int) -> None:
        choice = screen.choice
        if choice is not None and choice.left:
            choice.at = (choice.at + by) % len(choice.left)

    @keys.add("up", filter=choosing, eager=True)
    @keys.add("c-p", filter=choosing, eager=True)
    def _(_event: KeyPressEvent) -> None:
        move(-1)

    @keys.add("down", filter=choosing, eager=True)
    @keys.add("c-n", filter=choosing, eager=True)
    @keys.add("tab", filter=choosing, eager=True)
    def _(_event: KeyPressEvent) -> None:
        move(1)

    @keys.add("enter", filter=choosing, eager=True)
    def _(_event: KeyPressEvent) -> None:
        choice = screen.choice
        if choice is not None and not choice.done.done() and choice.left:
            choice.done.set_result(choice.left[choice.at])

    @keys.add("escape", filter=choosing)
    @keys.add("c-c", filter=choosing, eager=True)
    def _(_event: KeyPressEvent) -> None:
        screen.refuse()


def _input_keys(keys: KeyBindings, screen: LiveScreen) -> None:
    plain = Condition(lambda: screen.question is None and screen.choice is None) & ~is_searching

    @keys.add("enter", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        buffer, screen.notice = screen.buffer, ""
        state = buffer.complete_state
        if state is not None and state.current_completion is not None and not buffer.text.startswith("/"):
            buffer.complete_state = None
            buffer.insert_text(" ")
            return
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
            return
        text = buffer.text
        buffer.reset(append_to_history=bool(text.strip()))
        steering, screen.steering = screen.steering, False
        (screen.view.steer if steering and text.strip() else screen.view.submit)(text)
        screen.changed()

    @keys.add("escape", "enter", filter=plain)
    @keys.add("c-j", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        screen.buffer.insert_text("\n")

    @keys.add("tab", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        buffer = screen.buffer
        if buffer.complete_state is not None:
            buffer.complete_next()
        elif buffer.text.strip():
            buffer.start_completion(select_first=True)

    @keys.add(Keys.BracketedPaste, filter=plain)
    def _(event: KeyPressEvent) -> None:
        text = strip_escapes(event.data.replace("\r\n", "\n").replace("\r", "\n"))
        screen.buffer.insert_text(pasted_image(text) or text)

    @keys.add("c-g", filter=plain)
    @keys.add("c-x", "c-e", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        screen.buffer.open_in_editor()

    @keys.add("c-o", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        screen.view.expand()

    @keys.add("c-l", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        screen.app.renderer.erase()
        screen.changed()


def _run_keys(keys: KeyBindings, screen: LiveScreen) -> None:
    plain = Condition(lambda: screen.question is None and screen.choice is None)
    running = Condition(lambda: screen.view.running) & plain & ~is_searching & ~vi_insert_mode

    @keys.add("escape", filter=running)
    def _(_event: KeyPressEvent) -> None:
        screen.buffer.complete_state = None
        if screen.steering:
            screen.steering = False
            screen.view.stop()
        else:
            screen.steering = True
        screen.changed()

    @keys.add("c-c", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        if screen.buffer.text and not screen.view.running:
            screen.buffer.reset()
        else:
            screen.view.interrupt()

    @keys.add("c-d", filter=plain & Condition(lambda: not screen.buffer.text))
    def _(_event: KeyPressEvent) -> None:
        if screen.view.running:
            screen.say("An answer is running: Esc Esc or Ctrl-C stops it.")
        else:
            screen.leave(0)

    @keys.add(Keys.BackTab, filter=plain & ~is_searching)
    def _(_event: KeyPressEvent) -> None:
        screen.view.next_mode()

    @keys.add("c-z", filter=plain)
    def _(_event: KeyPressEvent) -> None:
        screen.suspend()
