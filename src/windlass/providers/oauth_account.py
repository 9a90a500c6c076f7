"""The login of one vendor: one token for many requests, renewed in time, once, and for every program.

A token is renewed a minute before its end by the wall clock, and once when the vendor refuses it. However many requests
wait for that, here and in other programs, the server is asked once; the others take what it gave.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import Mapping

from windlass.core import clock
from windlass.core.credentials import MARGIN_MS, Credentials, FileLock, Renewal
from windlass.core.errors import AuthError, ConfigError, ProviderError, ProviderTimeoutError
from windlass.core.http import Client
from windlass.core.items import NoticeItem
from windlass.core.oauth import OAuth
from windlass.core.oauth_settings import OAuthSettings
from windlass.core.threads import run_in_thread
from windlass.providers.oauth_sources import Source

__all__ = ["Account"]

log = logging.getLogger("windlass.oauth")
#: Seconds: for a new token that is refused at once, and between two tries to renew one that is still good.
_AT_ONCE, _AGAIN = 30.0, 15.0


class Account:
    """The credentials of one provider, shared by all its requests and event loops.

    `oauth` says who renews them; without it nobody does. `hint` is what a person does when the login has ended.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        oauth: OAuthSettings | None = None,
        *,
        provider: str = "",
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.provider, self.source, self.oauth = name, provider or name, source, oauth
        #: What goes along with its tokens.
        self.headers = dict(headers or {})
        self.hint = hint or f"Run `windlass auth {name}`."
        self._current: Credentials | None = None
        self._old: deque[str] = deque(maxlen=8)
        #: Tokens that the vendor refused, with its status.
        self._refused: dict[str, int] = {}
        self._ended: tuple[str, AuthError] | None = None
        self._margin, self._not_before, self._fresh_until = MARGIN_MS, 0.0, 0.0
        self._notice: NoticeItem | None = None
        self._guard = threading.Lock()
        self._tasks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[bool]] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def secrets(self) -> set[str]:
        """The words that nobody may read: those of now and of a while ago."""
        secret = self.oauth.client_secret if self.oauth is not None else ""
        now = self._current.secrets if self._current is not None else ()
        return {word for word in (*now, *self._old, secret) if word}

    def load(self) -> Credentials:
        """Return the credentials, read at first use. Raises AuthError where there are none; blocks on a file."""
        if self._current is None:
            self._current = self._there(self.source.read())
        return self._current

    def _there(self, found: Credentials | None) -> Credentials:
        if found is None:
            raise AuthError(f"Nobody is logged in to {self.name}.", provider=self.provider, hint=self.hint)
        return found

    async def ready(self, client: Client) -> Credentials:
        """Return credentials that are good for now, renewed where they are about to end.

        A server that cannot renew them is told only once they have ended. Raises ProviderError kinds and ConfigError.
        """
        if self._current is None:
            await run_in_thread(self.load)
        found = self.load()
        left = found.left_ms()
        if left is None or left >= self._margin or not (found.refresh and self.oauth is not None):
            return found
        if left > 0 and clock.monotonic() < self._not_before:
            return found
        try:
            await self._renewed(client, refused=False)
        except ProviderError as error:
            if left <= 0:
                raise
            self._not_before = clock.monotonic() + _AGAIN
            log.warning("The login of %s is not renewed yet: %s", self.name, error)
        return self.load()

    async def refresh(self, client: Client) -> bool:
        """Renew a token that was refused; False where that cannot be done or would not help.

        Raises AuthError when the login has ended, and what kept the server from answering.
        """
        if self._current is None:
            await run_in_thread(self.load)
        before = self.load()
        status = self._refused.get(before.access)
        if status is None and self._refused:
            return True  # it was renewed after this request had gone
        if status == 403:
            return False  # a right that is missing: another token has no more of them
        return await self._renewed(client, refused=True)

    def refused(self, token: str, status: int | None) -> None:
        """Note that the vendor refused a token, before `refresh` is asked."""
        if len(self._refused) >= 8:
            del self._refused[next(iter(self._refused))]
        self._refused[token] = status or 401

    def take_notice(self) -> NoticeItem | None:
        """Return what there is to tell of the last renewal, once."""
        notice, self._notice = self._notice, None
        return notice

    async def close(self) -> None:
        """Let a renewal that is under way on this loop come to its end: its answer would be lost for every program."""
        task = self._tasks.get(asyncio.get_running_loop())
        if task is not None and not task.done():
            await asyncio.wait([task], timeout=5.0)

    # -- renewing ------------------------------------------------------------------------------------------------------

    async def _renewed(self, client: Client, *, refused: bool) -> bool:
        """Renew, or wait for who does. A request that is cancelled leaves the renewal going."""
        loop = asyncio.get_running_loop()
        task = self._tasks.get(loop)
        if task is None or task.done():
            task = self._tasks[loop] = loop.create_task(self._renew(client, self.load(), refused))
            task.add_done_callback(_retrieved)
        return await asyncio.shield(task)

    async def _renew(self, client: Client, before: Credentials, refused: bool) -> bool:
        while not self._guard.acquire(blocking=False):
            await clock.sleep(0.02)  # another event loop is at it
        try:
            async with FileLock(self.source.path) if self.source.path else _Nothing():
                if self._current is not None and self._current.access != before.access:
                    return True
                return await self._renew_alone(client, before, refused)
        except TimeoutError:
            text = f"Another program has been renewing the login of {self.name} for too long."
            raise ProviderTimeoutError(text, provider=self.provider) from None
        finally:
            self._guard.release()

    async def _renew_alone(self, client: Client, before: Credentials, refused: bool) -> bool:
        found = self._there(await run_in_thread(self.source.read))
        if self._taken_over(before, found):
            return True
        if not found.refresh or self.oauth is None or (refused and clock.monotonic() < self._fresh_until):
            return False  # one that was refused as soon as it was made: another would be no better
        if self._ended is not None and self._ended[0] == found.refresh:
            known = self._ended[1]
            raise AuthError(known.message, provider=self.provider, endpoint=known.endpoint, hint=known.hint)
        server = OAuth(self.name, self.oauth, client, self.hint)
        try:
            await server.discover()
            new = await server.refresh(found)
        except AuthError as error:
            # A refresh token is good for one use: another program may have been first.
            if self._taken_over(before, self._there(await run_in_thread(self.source.read))):
                return True
            if error.status in (400, 401):
                self._ended = (found.refresh, error)
            raise
        self._old.extend(before.secrets)
        self._current, left = new, new.left_ms()
        self._margin = MARGIN_MS if left is None else min(MARGIN_MS, left // 2)
        self._fresh_until = clock.monotonic() + (_AT_ONCE if left is None else min(_AT_ONCE, left / 2000))
        renewal = Renewal(self.provider, self.name, self.source.kind, before, new)
        text = f"The login of {self.name} was renewed."
        self._notice = NoticeItem("refreshed", text, self.provider, detail=renewal)
        await self._save(new, server.identity)
        return True

    def _taken_over(self, before: Credentials, found: Credentials) -> bool:
        """Take what another program has renewed."""
        left = found.left_ms()
        if found.access == before.access or found.access in self._refused or (left is not None and left < 1000):
            return False
        self._old.extend(before.secrets)
        self._current = found
        return True

    async def _save(self, new: Credentials, identity: str) -> None:
        try:
            await run_in_thread(self.source.write, new, identity)
        except (OSError, ValueError, ConfigError) as error:
            # This program goes on with what it has; what is kept there is spent.
            where = self.source.path or self.source.kind
            log.warning("The renewed login of %s could not be written to %s: %s", self.name, where, error)


class _Nothing:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *exc: object) -> None: ...


def _retrieved(task: asyncio.Task[bool]) -> None:
    if not task.cancelled():
        # Retrieved also when everybody who waited was cancelled.
        task.exception()
