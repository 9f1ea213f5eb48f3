"""The loop in which a model's searches are run: to the paid request it looks like one provider.

    ask the model -> it calls web_search -> search, all calls of a round at once -> tell it -> ask again

Nothing is read ahead of the client, and leaving a stream ends the upstream and any search that is running.
A search that fails is told to the model; the request goes on.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from app import log, metrics
from app.clock import Clock
from app.deadline import Deadline
from app.provider_settings import NO_LIMIT
from app.search.backend import SearchBackend, SearchFailed, SearchResult
from app.search.calls import Search
from app.search.conversation import Conversation
from app.search.options import SearchOptions
from app.search.sanitise import sanitised
from app.search.turn import Shown, Turn
from app.search.whole import WholeAnswer
from app.search.wording import NO_QUERY, failed
from app.settings import SearchSettings
from app.upstream.provider import Call, Download, Provider, UpstreamError

_log = log.get("search")


class SearchingProvider:
    """A provider whose model can search the web, for one request. ``context_window`` is the model's, in tokens."""

    def __init__(
        self,
        inner: Provider,
        backend: SearchBackend,
        *,
        options: SearchOptions,
        settings: SearchSettings,
        clock: Clock,
        context_window: int = NO_LIMIT,
    ) -> None:
        self._inner = inner
        self._backend = backend
        self._options = options
        self._settings = settings
        self._clock = clock
        self._context_window = context_window

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def kind(self) -> str:
        return self._inner.kind

    @property
    def engine_type(self) -> str:
        return self._inner.engine_type

    @property
    def machine_name(self) -> str:
        return self._inner.machine_name

    @property
    def endpoints(self) -> frozenset[str]:
        return self._inner.endpoints

    def download(self, call: Call) -> AbstractAsyncContextManager[Download]:
        return self._inner.download(call)

    async def close(self) -> None:
        await self._inner.close()

    async def complete(self, call: Call) -> dict[str, Any]:
        talk = self._conversation(call)
        shown = Shown(talk.sources)
        answer = WholeAnswer(shown)
        while True:
            asked = talk.next_call()
            try:
                body = await self._inner.complete(asked)
            except UpstreamError as error:
                if talk.first or not error.callers_fault:
                    raise
                raise _ours(error) from error
            answer.read(body, offered=talk.offered, may_search=talk.may_search)
            talk.used(shown.bill.end_round(text_bytes=answer.text_bytes))
            if not answer.searches:
                return answer.answer(body)
            if talk.output_is_used_up:
                return answer.answer(body, finish="length")
            found = await self._look_up(talk.to_make(answer.searches), shown)
            talk.heard(answer.said, answer.searches, found, context_tokens=shown.bill.context_tokens)

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        talk = self._conversation(call)
        async with AsyncExitStack() as current:
            events = await current.enter_async_context(self._inner.stream(talk.next_call()))
            async with aclosing(self._rounds(talk, events, current)) as shown:
                yield shown

    def _conversation(self, call: Call) -> Conversation:
        return Conversation(call, self._options, now=self._clock.now_ms(), context_window=self._context_window)

    async def _rounds(
        self, talk: Conversation, events: AsyncIterator[list[bytes]], current: AsyncExitStack
    ) -> AsyncGenerator[list[bytes], None]:
        """The events of all rounds. ``current`` holds the stream of the round that is running."""
        shown = Shown(talk.sources)
        while True:
            turn = Turn(
                shown,
                first=talk.first,
                offered=talk.offered,
                may_search=talk.may_search,
                echo_bytes_max=talk.echo_bytes_max,
            )
            async for batch in events:
                frames = [frame for data in batch if not turn.done for frame in turn.read(data)]
                if frames:
                    yield frames
                if turn.done:
                    break
            if not turn.ended or not turn.searching:
                if frames := turn.end():
                    yield frames
                return
            talk.used(shown.bill.end_round(text_bytes=turn.text_bytes))
            # What is finished is billed, whatever comes of the rest.
            yield [shown.usage()]
            await current.aclose()
            if talk.output_is_used_up:
                yield turn.cut()
                return
            found = await self._look_up(talk.to_make(turn.searches), shown)
            talk.heard(turn.text, turn.searches, found, context_tokens=shown.bill.context_tokens)
            yield [shown.usage()]
            try:
                events = await current.enter_async_context(self._inner.stream(talk.next_call()))
            except UpstreamError as error:
                if not error.callers_fault:
                    raise
                raise _ours(error) from error

    async def _look_up(self, searches: Sequence[Search], shown: Shown) -> list[list[SearchResult] | str]:
        """What came of each search: results, or what the model is told instead. Never fails."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._search(search.query)) for search in searches]
        found = [task.result() for task in tasks]
        shown.bill.searches += sum(not isinstance(outcome, str) for outcome in found)
        return found

    async def _search(self, query: str | None) -> list[SearchResult] | str:
        if query is None:
            return NO_QUERY
        try:
            with Deadline(self._settings.timeout_s):
                results = await self._backend.search(query, self._options)
            # Whatever the backend made of it: the conversation's bounds are kept here.
            raw = ((result.title, result.url, result.text, result.published) for result in results)
            return sanitised(raw, self._options)
        except SearchFailed as error:
            result, message = error.result, error.message
        except TimeoutError:
            result, message = "timeout", "the search service did not answer in time"
        except Exception as error:
            metrics.alerts.labels("internal_error").inc()
            _log.error("search_broke", backend=self._backend.name, exc_info=error)
            result, message = "internal_error", "the search service failed"
        _log.warning("search_failed", backend=self._backend.name, result=result)
        return failed(message)


def _ours(error: UpstreamError) -> UpstreamError:
    """A refusal of a later round: the client's own words were taken in the first one."""
    return UpstreamError(error.result, error.message, status=error.status, retry_after_s=error.retry_after_s)
