"""One call of the API through the `openai` client: streamed, so that what has arrived is known whenever it breaks."""

from __future__ import annotations

from typing import Any

import httpcore
import httpcore2
import openai

from worker.clock import now
from worker.errors import HttpStatusError, HttpUnreachable, LimitExceeded
from worker.settings import settings
from worker.tasks.chat import room
from worker.tasks.chat.answer import Answer
from worker.tasks.chat.request import Chat
from worker.tasks.chat.transport import Transport
from worker.tasks.outbound import parse_retry_after
from worker.tasks.outbound.dialing import Deadline

#: Characters of a refusal that its error quotes.
_QUOTED = 300
#: How connections and protocols break, in the words of those who read them.
_BROKEN = (httpcore.NetworkError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, openai.APIError,
           ValueError, TypeError, AttributeError)  # fmt: skip


class Call:
    """One call under way, and what is known of it at any moment."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.answer = Answer()
        self._key = settings().llm_api_key.get_secret_value()
        #: Whether the provider may have worked for it: it was sent, and not answered by a refusal.
        self.spent = False

    def make(self) -> None:
        """Send the request and read its answer to the end.

        Raises `LimitExceeded` when the provider limits the rate, `HttpStatusError` for another refusal, and `HttpUnreachable`
        (`HttpTimeout`), after which a repeat may help, when no whole answer came within `timeout_s`. No error holds the API key
        or what was sent.
        """
        transport = Transport(Deadline(self.chat.timeout_s), has_key=bool(self._key))
        try:
            with self._client(transport) as client, self._begin(client) as stream:
                for chunk in stream:
                    self.answer.add(chunk.to_dict(warnings=False))
        except openai.APIStatusError as exc:
            raise self._refusal(exc) from None
        except (HttpUnreachable, *_BROKEN) as exc:
            self.spent = transport.sent
            if not self.answer.complete:  # otherwise all that is missing is the provider's good-bye
                raise self._break(exc) from None
        except BaseException:  # a time limit of the job
            self.spent = transport.sent
            raise
        self.spent = True
        if not self.answer.complete:
            raise HttpUnreachable(f"{self.chat.base_url} ended its answer before it was whole")

    def _client(self, transport: Transport) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(transport=transport, trust_env=False, follow_redirects=False)
        # All that it would otherwise take from its own environment is given here. It does not try again: that would be a call
        # nobody has reserved.
        return openai.OpenAI(
            api_key=self._key or "none", organization="", project="", webhook_secret="", base_url=self.chat.base_url,
            default_headers={"Authorization": f"Bearer {self._key}"}, timeout=self.chat.timeout_s, max_retries=0,
            http_client=http,
        )  # fmt: skip

    def _begin(self, client: openai.OpenAI) -> openai.Stream[Any]:
        messages: Any = self.chat.messages
        stream = client.chat.completions.create(
            model=self.chat.model, messages=messages, stream=True, stream_options={"include_usage": True},
            extra_body=self.chat.options,
        )  # fmt: skip
        room.note(self.chat, room.told_by(stream.response.headers, stream.response.status_code, now()))
        return stream

    def _refusal(self, exc: openai.APIStatusError) -> LimitExceeded | HttpStatusError:
        headers, status = exc.response.headers, exc.status_code
        rooms = room.told_by(headers, status, now())
        why = f"{self.chat.base_url} answered {self._quote(exc)}"
        # A provider whose account is empty says 429 as well, and will say so tomorrow.
        if status == 429 and exc.code != "insufficient_quota":
            room.note(self.chat, rooms)
            return LimitExceeded(why, limit=f"provider:{self.chat.model}", retry_after=rooms[-1].until_s)
        after_s = parse_retry_after(headers.get("retry-after", ""), now())
        return HttpStatusError(why, status=status, retry_after_s=after_s)

    def _break(self, exc: Exception) -> HttpUnreachable:
        if isinstance(exc, HttpUnreachable):
            return exc
        return HttpUnreachable(f"{self.chat.base_url} did not answer properly: {self._quote(exc)}")

    def _quote(self, exc: Exception) -> str:
        text = str(exc).removeprefix("Error code: ").strip() or type(exc).__name__
        return (text.replace(self._key, "***") if self._key else text)[:_QUOTED]
