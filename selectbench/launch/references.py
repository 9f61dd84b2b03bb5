"""Models behind an API, asked for a run's held-out text: answers are paid once, kept, and scored as a trial's."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import log
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from selectbench import units
from selectbench.data.prepared import TOKENIZER, Prepared, cache_root
from selectbench.errors import MissingPackageError, UserError
from selectbench.launch.gpus import Notify
from selectbench.launch.own_code import ask_worker
from selectbench.machine import lock
from selectbench.record.record import ANSWERS, ApiAnswers, Sample, Sentences
from selectbench.record.run_folder import REFERENCES, read_answers, write_whole, writing
from selectbench.suite.job import Eval
from selectbench.text import visible

if TYPE_CHECKING:
    from pathlib import Path

    import openai

    from selectbench.launch.trial import Stop
    from selectbench.suite.suite import Reference, Suite

ATTEMPTS = 6
"""At one question, until the model is given up for this time."""
MOST_WAIT_SECONDS = 300.0
"""Longest wait that a server may ask for."""
STOP_SECONDS = 10.0
"""For answers in flight, which are paid, once the run is to stop."""
SCORE_SECONDS = 900.0
_PROGRESS_SECONDS = 20.0
_OVERHEAD_TOKENS = 64
"""What a chat template adds to a prompt, until an answer shows that it is more."""
_BYTES_PER_TOKEN = 3.5
"""Of an estimate; a token is never less than a byte."""
_PASSING = (408, 409, 425, 429)
"""Refusals that pass by themselves, as those from 500 do."""
_OF_ONE_TEXT = (400, 413, 422)
"""Refusals that may be of one text, which is too long or unwanted."""
_OF_THE_ACCOUNT = (401, 402, 429)
"""Refusals that say nothing of what an API has."""
_MOST_REFUSED = 0.1
"""Share of all texts: where more are refused, it is the request that is wrong."""
_SAMPLES = 2


# What is asked: one request for each piece of held-out text.


@dataclass(frozen=True)
class Question:
    """One request; equal ones of any run have one answer."""

    text: str
    """The source, or the text to be predicted."""
    target: str
    """What a good answer would be; '' where none is asked for."""
    path: str
    """Below the server's address."""
    body: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Of the answer."""
        return hashlib.sha256(json.dumps([self.path, self.body], sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def most_tokens(self) -> tuple[int, int]:
        """In and out, at most: of its text a token is a byte at least."""
        sent = json.dumps(self.body.get("messages", self.text), ensure_ascii=False)
        return len(sent.encode()), max(int(self.body.get(k) or 0) for k in ("max_tokens", "max_completion_tokens"))


def questions(asked: Reference, suite: Suite, prepared: Prepared) -> list[Question]:
    """In the order of the held-out text. `prepared`: the baseline's data."""
    job = suite.job_of(suite.option(suite.baseline))
    fixed: dict[str, Any] = {"model": asked.api.model, "temperature": 0}
    if asked.prompt is None:
        fixed |= {"max_tokens": 1, "echo": True, "logprobs": 1}
    elif "max_completion_tokens" not in asked.request:
        fixed["max_tokens"] = asked.max_tokens
    fixed = {key: value for key, value in (fixed | asked.request).items() if value is not None}
    if asked.prompt is None:
        return [Question(text, "", "/completions", {**fixed, "prompt": text}) for text in _pieces(suite, prepared)]
    found = []
    for source, target in prepared.pairs_to_score(job):
        message = {"role": "user", "content": asked.prompt.replace("{source}", source)}
        found.append(Question(source, target, "/chat/completions", {**fixed, "messages": [message]}))
    return found


def _pieces(suite: Suite, prepared: Prepared) -> Iterator[str]:
    """The held-out tokens that are scored, as text: documents, cut where they are longer than a sequence."""
    from tokenizers import Tokenizer

    job = suite.job_of(suite.option(suite.baseline))
    assert isinstance(job.eval, Eval)
    tokenizer, piece = Tokenizer.from_file(str(prepared.folder / TOKENIZER)), list[int]()
    for token in [*prepared.heldout()[: job.eval.tokens].tolist(), prepared.end_id]:
        piece += [token] if token != prepared.end_id else []
        if token == prepared.end_id or len(piece) == job.seq_len:
            text = tokenizer.decode(piece, skip_special_tokens=False).strip("\ufffd")  # halves of characters
            piece = []
            if text.strip():
                yield text


# Every answer ever had of one model at one address: a file that is only appended to, by one process at a time.


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer of a model."""

    text: str = ""
    seconds: float
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    nats: float | None = None
    """Of a text whose log-probabilities were asked for; None: the server did not report them."""
    bytes: int = 0
    """That these are of."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request, written before it is sent, as one whose answer is lost may have been paid; or what came of it."""

    key: str
    answer: Answer | None = None
    refused: bool = False
    """Whether the server answered with an error, which costs nothing."""


class Ledger:
    """Answers by their questions' keys, and how many requests brought none."""

    def __init__(self, asked: Reference) -> None:
        named = hashlib.sha256(f"{asked.api.base_url}\n{asked.api.model}".encode()).hexdigest()[:24]
        self.path = cache_root() / "answers" / f"{named}.jsonl"
        self._read()

    def _read(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.lost: Counter[str] = Counter()
        for line in self.path.read_bytes().split(b"\n") if self.path.is_file() else ():
            try:
                self._take(msgspec.json.decode(line, type=Line))
            except (msgspec.DecodeError, RecursionError):  # torn, as its process was killed
                continue

    def _take(self, line: Line) -> None:
        self.lost[line.key] += -1 if line.answer is not None or line.refused else 1
        if line.answer is not None:
            self.answers[line.key] = line.answer

    @contextmanager
    def held(self, stop: Stop, notify: Notify) -> Iterator[bool]:
        """Whether it is ours inside; not where the run is to stop before another one is done. Raises UserError."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+b", buffering=0)
        with self._stream:
            if not (is_ours := self._is_locked()):
                notify("another run is asking this model; waiting for its end")
            while not is_ours and not stop:
                stop.wait(1.0)
                is_ours = self._is_locked()
            if is_ours and not self.path.read_bytes().endswith(b"\n"):
                with writing(self.path):
                    self._stream.write(b"\n")
            self._read()
            yield is_ours

    def _is_locked(self) -> bool:
        try:
            return lock(self._stream.fileno(), wait=False)
        except OSError:  # storage without locks, where two runs at the same time may ask the same
            return True

    def append(self, line: Line) -> None:
        """One line, on the disk when this returns. Raises UserError."""
        with writing(self.path):
            self._stream.write(msgspec.json.encode(line) + b"\n")
            os.fsync(self._stream.fileno())
        self._take(line)


# Asking: some questions at a time, each again after what may pass by itself, none that could cost too much.


class HaltError(Exception):
    """There is no point in asking this model more now."""

    def __init__(self, why: str, *, is_mistake: bool = False, settled: bool = False, status: int = 0) -> None:
        """`is_mistake`: somebody must mend something; `settled`: asking again would change nothing.

        `status`: with which the server refuses.
        """
        super().__init__(why)
        self.why, self.is_mistake, self.settled, self.status = why, is_mistake, settled, status


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Logprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class Asking:
    """One model that is asked, or could be."""

    def __init__(self, asked: Reference, every: Sequence[Question], ledger: Ledger) -> None:
        self.asked, self.every, self.ledger = asked, every, ledger
        self.unlike = {question.key: question for question in every}
        self.halted: HaltError | None = None
        """Why some may have no answer."""
        self.refused: dict[str, str] = {}
        """By key of texts that this model refuses, as it answers others: why."""
        self._not_before = 0.0
        """Of the monotonic clock: no request earlier."""
        self._told: set[str] = set()
        self._overhead = _OVERHEAD_TOKENS
        answers = [(q, ledger.answers[key]) for key, q in self.unlike.items() if key in ledger.answers]
        for question, answer in answers:
            self._learn(question, answer)
        self._spent_usd = self.lost_usd + sum(self._charge(*pair) for pair in answers)
        """By all requests for these questions, at most, whenever they were sent."""

    @property
    def missing(self) -> list[Question]:
        """Those without an answer."""
        return [q for key, q in self.unlike.items() if key not in self.ledger.answers and key not in self.refused]

    @property
    def lost_usd(self) -> float:
        """What requests may have cost, at most, that brought no answer."""
        return sum(self.most_usd(q) * self.ledger.lost[key] for key, q in self.unlike.items())

    def usd(self, input_tokens: float | None, output_tokens: float | None) -> float | None:
        """None: no prices, or the server does not tell its tokens."""
        prices = self.asked.usd_per_million_tokens
        if prices is None or input_tokens is None or output_tokens is None:
            return None
        return (input_tokens * prices.input + output_tokens * prices.output) / 1e6

    def most_usd(self, question: Question) -> float:
        """0 without prices."""
        sent, said = question.most_tokens
        return self.usd(sent + self._overhead, said) or 0.0

    def _charge(self, question: Question, answer: Answer) -> float:
        known = self.usd(answer.input_tokens, answer.output_tokens)
        return self.most_usd(question) if known is None else known

    def _learn(self, question: Question, answer: Answer) -> None:
        """A server may put more before a prompt than was thought."""
        self._overhead = max(self._overhead, (answer.input_tokens or 0) - question.most_tokens[0])

    def ask(self, secret: str, stop: Stop, notify: Notify, attempts: int) -> None:
        """All that is missing, in a thread, as the caller's may have a loop of its own. Raises UserError."""
        if missing := self.missing:
            self._secret, self._stop, self._notify, self._attempts = secret, stop, notify, attempts
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, self._ask(missing)).result()

    async def _ask(self, missing: Sequence[Question]) -> None:
        import openai

        host = urlsplit(self.asked.api.base_url).hostname or ""
        is_here = host in ("localhost", "::1") or host.startswith("127.")  # where no proxy leads to
        client = openai.AsyncOpenAI(
            api_key=self._secret or "none", base_url=self.asked.api.base_url, max_retries=0,
            timeout=self.asked.timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_here),
        )  # fmt: skip
        queue, told, end = iter(missing), time.monotonic(), float("inf")

        async def work() -> None:
            for question in queue:
                try:
                    await self._answer(client, question)
                except HaltError as halt:
                    self.halted = self.halted or halt
                if self.halted or self._stop:
                    return

        async with client:
            pending = tasks = {asyncio.create_task(work()) for _ in range(self.asked.at_once)}
            while pending:
                _, pending = await asyncio.wait(pending, timeout=0.2)
                end = min(end, time.monotonic() + STOP_SECONDS) if self._stop else end
                for task in pending if time.monotonic() > end else ():
                    task.cancel()
                if time.monotonic() > told + _PROGRESS_SECONDS:
                    told = time.monotonic()
                    self._notify(f"{len(self.every) - len(self.missing)} of {len(self.every)} answered")
            for task in tasks:
                if not task.cancelled():
                    task.result()

    async def _answer(self, client: openai.AsyncOpenAI, question: Question) -> None:
        """Ask until there is an answer, which is kept. Raises HaltError."""
        why = ""
        for attempt in range(self._attempts):
            while (wait := self._not_before - time.monotonic()) > 0 and not self._stop and not self.halted:
                await asyncio.sleep(min(wait, 0.2))
            if self._stop or self.halted:
                return
            most, bound = self.most_usd(question), self.asked.max_usd
            if bound is not None and self._spent_usd + most > bound:
                spent = f"{units.usd(self._spent_usd)} may be spent, and the next answer may cost {units.usd(most)}"
                raise HaltError(f"max_usd {bound:g}: {spent}; raise it to have the rest", settled=True)
            why, asks_to_wait = await self._attempt(client, question, most)
            if not why:
                return
            if asks_to_wait > MOST_WAIT_SECONDS:
                raise HaltError(f"{why}; it asks to wait {units.duration(asks_to_wait)}: run the same command then")
            if attempt + 1 < self._attempts:
                backoff = asks_to_wait or 2.0**attempt * random.uniform(0.75, 1.25)
                if why not in self._told or backoff > _PROGRESS_SECONDS:
                    self._notify(f"{why}; asking again in {units.seconds(backoff)}")
                self._told.add(why)
                self._not_before = max(self._not_before, time.monotonic() + backoff)
        raise HaltError(
            f"{why}{f', {self._attempts} times; the same command goes on' if self._attempts > 1 else ''}"
        )

    async def _attempt(self, client: openai.AsyncOpenAI, question: Question, most: float) -> tuple[str, float]:
        """Why there is no answer, '' where there is one, and the seconds that the server asks to wait, or 0."""
        import openai

        self.ledger.append(Line(question.key))
        self._spent_usd += most
        where, seconds, began = self.asked.api.base_url, self.asked.timeout_seconds, time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                sent: Any = await client.post(question.path, body=dict(question.body), cast_to=object)
            if isinstance(sent, str):  # a page, or a stream
                why = f"{where} sent what is no completion ({self._harmless(sent)[:60]})"
                if any(key in self.ledger.answers for key in self.unlike):  # a proxy's, for a while
                    return why, 0.0
                raise HaltError(f"{why}: look at `base_url`, which mostly ends in /v1", is_mistake=True)
            answer = self._kept(question, msgspec.convert(sent, _Reply), round(time.perf_counter() - began, 6))
        except openai.APIStatusError as error:
            self.ledger.append(Line(question.key, refused=True))
            self._spent_usd -= most
            status, said = error.status_code, self._said(error.body)
            if (status in _PASSING or status >= 500) and "insufficient_quota" not in said:
                return f"{where} answers {status} ({said})", _asks_to_wait(error.response.headers)
            is_rare = len(self.refused) + 1 <= _MOST_REFUSED * len(self.every)
            if status in _OF_ONE_TEXT and self.asked.prompt is not None and is_rare:
                self.refused[question.key] = f"{status}: {said}"
                return "", 0.0
            words = _refusal(self.asked, status, said)
            raise HaltError(words, is_mistake=True, status=status) from None
        except (TimeoutError, openai.APITimeoutError):
            return f"{where} gave no answer within {units.seconds(seconds)}", 0.0
        except openai.APIConnectionError as error:
            return f"the connection to {where} failed ({self._harmless(error.__cause__ or error)})", 0.0
        except (openai.OpenAIError, msgspec.DecodeError, ValueError) as error:
            return f"{where} sent what is no completion ({self._harmless(error)})", 0.0
        self._learn(question, answer)
        self._spent_usd += self._charge(question, answer) - most
        self.ledger.append(Line(question.key, answer=answer))
        return "", 0.0

    def _kept(self, question: Question, reply: _Reply, seconds: float) -> Answer:
        if not reply.choices:
            raise ValueError(self._said(reply.error) if reply.error else "it has no choices")
        choice, usage = reply.choices[0], reply.usage or _Usage()
        text = (choice.message.content if choice.message else choice.text) or ""
        told, end, nats, size = choice.logprobs or _Logprobs(), usage.prompt_tokens or 0, None, 0
        if question.path == "/completions" and text.startswith(question.text) and 1 < end <= len(told.tokens):
            known = [value for value in told.token_logprobs[1:end] if value is not None]
            nats = -sum(known) if len(known) == end - 1 else None  # of the first token nothing is told
            first = told.tokens[0] if text.startswith(told.tokens[0]) else ""
            size, text = len(question.text.encode()) - len(first.encode()), ""
        return Answer(
            text=self._without_key(text), seconds=seconds, finish=choice.finish_reason, nats=nats, bytes=size,
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens,
        )  # fmt: skip

    def _said(self, body: Any) -> str:
        """The server's own words."""
        body = body.get("error", body) if isinstance(body, dict) else body
        words = [body.get(key) for key in ("message", "detail", "code")] if isinstance(body, dict) else [body]
        return self._harmless(", ".join(str(word) for word in words if word) or "without a word")

    def _harmless(self, words: object) -> str:
        return visible(self._without_key(str(words)), 200)

    def _without_key(self, text: str) -> str:
        """A server may repeat it; a word of a few characters, as local servers take, is no secret."""
        return text.replace(self._secret, "(the key)") if len(self._secret) >= 8 else text


def _asks_to_wait(headers: Mapping[str, str]) -> float:
    """Of Retry-After, seconds or a date (RFC 9110, 10.2.3); 0: it does not say."""
    said = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}(\.\d+)?", said):
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _refusal(asked: Reference, status: int, said: str) -> str:
    """A sentence with the fix; the words of a 401 may hold parts of the key."""
    where, variable, model = asked.api.base_url, asked.api.key_env, visible(asked.api.model)
    if status == 401 and variable is None:
        return f"{where} asks for a key (401): say in which variable it is, `key_env: OPENAI_API_KEY`"
    if "max_completion_tokens" in said:
        fix = f"write `request: {{max_completion_tokens: {asked.max_tokens}}}`"
        return f"{where} takes no max_tokens ({status}: {said}): {fix}"
    sentences = {
        401: f"does not take the key in {variable} (401): put a valid one there",
        402: f"wants money (402: {said}): add credit to the account",
        403: f"does not let this key use {model} (403: {said}): take another model or key",
        404: f"knows no {model} (404: {said}): look at `model`, and at `base_url`, which mostly ends in /v1",
        429: f"has no credit left for this key (429: {said}): add some",
    }
    other = f"refuses the request ({status}: {said}): mend `prompt`, `max_tokens` or `request`"
    return f"{where} {sentences.get(status, other)}"


# A run's references: what is still to be asked is asked, scored and written into its folder.


def unsettled(suite: Suite, prepared: Mapping[str, Prepared], folder: Path) -> list[str]:
    """References of which the run's folder lacks an answer or a score. Raises UserError."""
    if not suite.references:
        return []
    known, data = read_answers(folder), prepared[suite.baseline]
    asks = {name: _digest(suite, one, questions(one, suite, data)) for name, one in suite.references.items()}
    return [name for name in asks if name not in known or not known[name].settled or known[name].asks != asks[name]]


def _digest(suite: Suite, asked: Reference, every: Sequence[Question]) -> str:
    scores = suite.built.eval.scores if isinstance(suite.built.eval, Eval) else []
    content = [asked.model_dump(mode="json"), [(q.key, q.target) for q in every], scores]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def ask_references(
    suite: Suite, prepared: Mapping[str, Prepared], folder: Path, stop: Stop, notify: Notify, *, tries: bool = False
) -> None:
    """Ask, score and write what of the references the run's folder does not hold.

    `tries`: one question each, so that what is wrong is known before hours of training; its answer is kept.
    Raises UserError then, or where something can't be written.
    """
    for name in unsettled(suite, prepared, folder):
        asked, ledger = suite.references[name], Ledger(suite.references[name])
        every = questions(asked, suite, prepared[suite.baseline])
        secret = _secret(name, asked) if Asking(asked, every, ledger).missing else ""

        def say(line: str, name: str = name) -> None:
            notify(f"reference {name}: {line}")

        with ledger.held(stop, say) as is_ours:
            if not is_ours:
                return
            asking = Asking(asked, [min(every, key=lambda q: len(q.text))] if tries else every, ledger)
            if not tries and asking.missing:
                say(f"asking {visible(asked.api.model)} for {len(asking.missing)} of {len(every)} answers")
            asking.ask(secret, stop, say, 1 if tries else ATTEMPTS)
        halted = asking.halted
        if not tries:
            found = _outcome(name, asking, suite, folder)
            why = f": {found.incomplete}" if found.incomplete else ""
            say(f"{found.answered} of {found.sentences} answered{why}")
        elif halted is not None and halted.is_mistake and asked.prompt is not None:
            raise UserError(f"references.{name}: {halted.why}; or leave them out: --set references=null")
        elif halted is not None:
            say(f"{halted.why}; it is asked after the trials")


def _secret(name: str, asked: Reference) -> str:
    """The key; '': none is needed. Raises UserError where it, or the client, is missing."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            f"references.{name} needs the package openai: pip install 'selectbench[api]'"
        ) from None
    if (variable := asked.api.key_env) is None:
        return ""
    secret = os.environ.get(variable, "").strip()
    if secret and secret.isascii() and secret.isprintable():
        return secret
    wrong, fix = "holds what is no key" if secret else "is not set", f"put the key of {asked.api.base_url} there"
    raise UserError(f"references.{name}: {variable} {wrong}: {fix}; or leave them out: --set references=null")


def _outcome(name: str, asking: Asking, suite: Suite, folder: Path) -> ApiAnswers:
    """What came of it, which the run's folder holds when this returns."""
    asked, every, halted, given = asking.asked, asking.every, asking.halted, asking.ledger.answers
    answers, generates = [given[q.key] for q in every if q.key in given], asked.prompt is not None
    texts = [
        (q, given[q.key].text if q.key in given else "") for q in every if q.key in given or q.key in asking.refused
    ]
    nats, size = _total([answer.nats for answer in answers]), sum(answer.bytes for answer in answers)
    incomplete, no_bits, silent = None, None, "the API tells no log-probabilities of a text"
    if not generates and nats is None and halted and halted.status not in (0, *_OF_THE_ACCOUNT):
        no_bits = f"{silent}: {halted.why}"
    elif len(texts) < len(every):
        incomplete = halted.why if halted else "the run was stopped; the same command goes on"
    elif not generates and (nats is None or not size):
        no_bits = silent
    found = ApiAnswers(
        asks=_digest(suite, asked, every), model=asked.api.model, base_url=asked.api.base_url,
        sentences=len(every), answered=len(answers), refused=next(iter(asking.refused.values()), None),
        empty=sum(not a.text.strip() for a in answers) if generates else 0,
        cut=sum(a.finish == "length" for a in answers) if generates else 0,
        input_tokens=_total([a.input_tokens for a in answers]),
        output_tokens=_total([a.output_tokens for a in answers]),
        usd=_total([asking.usd(a.input_tokens, a.output_tokens) for a in answers]), lost_usd=asking.lost_usd,
        latency_median_seconds=median(a.seconds for a in answers) if answers else None, incomplete=incomplete,
        bits_per_byte=None if incomplete or no_bits or nats is None or not size else nats / size / log(2),
        no_bits=no_bits, settled=incomplete is None or (halted is not None and halted.settled),
        samples=[Sample(prompt=q.text, said=said, reference=q.target) for q, said in texts[:_SAMPLES] if generates],
    )  # fmt: skip
    if generates and incomplete is None:
        found = _scored(found, texts, suite)
    lines = [{"source": q.text, "reference": q.target, "hypothesis": said} for q, said in texts if generates]
    kept = {key: one for key, one in read_answers(folder).items() if key in suite.references} | {name: found}
    with writing(folder):
        (folder / "references").mkdir(exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(folder / "references" / f"{name}.jsonl", text)
        write_whole(folder / REFERENCES, ANSWERS.write(kept).decode() + "\n")
    return found


def _total(values: Sequence[Any]) -> Any:
    """None where one is not known, or there are none."""
    return None if not values or None in values else sum(values)


def _scored(found: ApiAnswers, texts: Sequence[tuple[Question, str]], suite: Suite) -> ApiAnswers:
    assert isinstance(suite.built.eval, Eval)
    content: dict[str, object] = {
        "code": suite.code, "names": suite.built.eval.scores, "sources": [q.text for q, _ in texts],
        "references": [q.target for q, _ in texts], "hypotheses": [" ".join(said.split()) for _, said in texts],
    }  # fmt: skip
    python = suite.option(suite.baseline).choices.python
    try:
        told = ask_worker("score", content, python, suite, SCORE_SECONDS, "scoring what a reference answered")
    except TimeoutError:
        told = f"its scores take longer than {units.duration(SCORE_SECONDS)}"
    if isinstance(told, str):
        return msgspec.structs.replace(found, incomplete=told, settled=False)
    kept = told["sentences"] and msgspec.convert(told["sentences"], Sentences)
    return msgspec.structs.replace(found, scores=told["scores"], kept=kept)


def reference_lines(suite: Suite, prepared: Mapping[str, Prepared]) -> Iterator[str]:
    """What `plan` says of each: how many requests, and what they cost."""
    for name, asked in suite.references.items():
        asking = Asking(asked, questions(asked, suite, prepared[suite.baseline]), Ledger(asked))
        try:
            if asking.missing:
                _secret(name, asked)
        except UserError as error:
            yield str(error)
        tokens = [
            sum(q.most_tokens[0] for q in asking.missing) / _BYTES_PER_TOKEN,
            sum(len(q.target.encode()) / _BYTES_PER_TOKEN if q.target else 1 for q in asking.missing),
        ]
        known = len(asking.every) - len(asking.missing)
        where = f"{visible(asked.api.model)} at {asked.api.base_url}"
        told = f"reference {name}: {len(asking.missing)} requests to {where}"
        told += f" ({known} are answered already)" if known else ""
        told += f", about {units.count(round(tokens[0]))} tokens in and {units.count(round(tokens[1]))} out"
        if (about := asking.usd(*tokens)) is None:
            yield f"{told}; what they cost is not known without usd_per_million_tokens"
        else:
            most = units.usd(sum(map(asking.most_usd, asking.missing)))
            bound = "" if asked.max_usd is None else f"; it stops before {units.usd(asked.max_usd)}"
            yield f"{told}: about {units.usd(about)}, at most {most}{bound}"
