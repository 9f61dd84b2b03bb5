"""Models behind an API, asked for a run's held-out text: answers are paid once, kept, and scored as a trial's."""

from __future__ import annotations

import asyncio
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
"""Requests for one question, until the model is given up for this time."""
MOST_WAIT_SECONDS = 300.0
"""Longest wait that a server may ask for."""
STOP_SECONDS = 10.0
"""Time for answers in flight, which are paid, once the run is to stop."""
SCORE_SECONDS = 900.0
_PROGRESS_SECONDS = 20.0
_OVERHEAD_TOKENS = 64
"""Tokens that a chat template adds to a prompt, until an answer shows that there are more."""
_BYTES_PER_TOKEN = 3.5
"""For estimates; the upper bounds take a token to be one byte at least."""
_TEMPORARY = (408, 409, 425, 429)
"""Statuses of refusals that pass by themselves, as those from 500 do."""
_OF_ONE_TEXT = (400, 413, 422)
"""Statuses of refusals that may be due to one text, which is too long or unwanted."""
_OF_THE_ACCOUNT = (401, 402, 429)
"""Statuses of refusals that say nothing of what an API can do."""
_MOST_REFUSED = 0.1
"""Share of all texts: where more are refused, the request itself is wrong."""
_SAMPLES = 2


# What is asked: one request for each piece of held-out text.


@dataclass(frozen=True)
class Question:
    """One request; the equal requests of all runs share one answer."""

    text: str
    """The source, or the text to be predicted."""
    target: str
    """What a good answer would be; '' where a text is only scored."""
    path: str
    """Path of the request, after the server's address."""
    body: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """The key of its answer in the ledger, a digest of the request."""
        return hashlib.sha256(json.dumps([self.path, self.body], sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def most_tokens(self) -> tuple[int, int]:
        """The most input and output tokens; a token of the text is a byte at least."""
        sent = json.dumps(self.body.get("messages", self.text), ensure_ascii=False)
        return len(sent.encode()), max(int(self.body.get(k) or 0) for k in ("max_tokens", "max_completion_tokens"))


def make_questions(reference: Reference, suite: Suite, prepared: Prepared) -> list[Question]:
    """One question for each piece of held-out text, in its order. `prepared`: the baseline's data."""
    job = suite.job_of(suite.option(suite.baseline))
    fixed: dict[str, Any] = {"model": reference.api.model, "temperature": 0}
    if reference.prompt is None:
        fixed |= {"max_tokens": 1, "echo": True, "logprobs": 1}
    elif "max_completion_tokens" not in reference.request:
        fixed["max_tokens"] = reference.max_tokens
    fixed = {key: value for key, value in (fixed | reference.request).items() if value is not None}
    if reference.prompt is None:
        return [Question(text, "", "/completions", {**fixed, "prompt": text}) for text in _pieces(suite, prepared)]
    questions = []
    for source, target in prepared.pairs_to_score(job):
        message = {"role": "user", "content": reference.prompt.replace("{source}", source)}
        questions.append(Question(source, target, "/chat/completions", {**fixed, "messages": [message]}))
    return questions


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
    """The loss of a text whose log-probabilities were asked for; None: the server did not report them."""
    bytes: int = 0
    """Bytes of the text that `nats` is the loss of."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request, written before it is sent, as it may have to be paid though its answer is lost; or its result."""

    key: str
    answer: Answer | None = None
    refused: bool = False
    """Whether the server answered with an error, which costs nothing."""


class Ledger:
    """The answers of one model by their questions' keys, and how many requests brought none."""

    def __init__(self, reference: Reference) -> None:
        digest = hashlib.sha256(f"{reference.api.base_url}\n{reference.api.model}".encode()).hexdigest()
        self.path = cache_root() / "answers" / f"{digest[:24]}.jsonl"
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
    def locked(self, stop: Stop, notify: Notify) -> Iterator[bool]:
        """Keep other runs out while inside; False: the run is to stop while another has it. Raises UserError."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+b", buffering=0)
        with self._stream:
            if not (is_ours := self._try_lock()):
                notify("another run is asking this model; waiting for its end")
            while not is_ours and not stop:
                stop.wait(1.0)
                is_ours = self._try_lock()
            if is_ours and not self.path.read_bytes().endswith(b"\n"):
                with writing(self.path):
                    self._stream.write(b"\n")
            self._read()
            yield is_ours

    def _try_lock(self) -> bool:
        try:
            return lock(self._stream.fileno(), wait=False)
        except OSError:  # storage without locks, where two runs at the same time may ask the same
            return True

    def append(self, line: Line) -> None:
        """Write one line, which is on the disk when this returns. Raises UserError."""
        with writing(self.path):
            self._stream.write(msgspec.json.encode(line) + b"\n")
            os.fsync(self._stream.fileno())
        self._take(line)


# Asking: some questions at a time, each again after what may pass by itself, none that could cost too much.


class HaltError(Exception):
    """There is no point in asking this model more now."""

    def __init__(self, why: str, *, is_mistake: bool = False, settled: bool = False, status: int = 0) -> None:
        """`is_mistake`: the user must mend something; `settled`: asking again would change nothing.

        `status`: the HTTP status of the server's refusal; 0: it is no refusal.
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
    """Asks one model the questions that have no answer yet, and knows what that costs at most."""

    def __init__(self, reference: Reference, questions: Sequence[Question], ledger: Ledger) -> None:
        self.reference, self.questions, self.ledger = reference, questions, ledger
        self.by_key = {question.key: question for question in questions}
        self.halted: HaltError | None = None
        """Why asking ended before every question had an answer; None: it did not."""
        self.refused: dict[str, str] = {}
        """Why this model refuses a text though it answers others, by the question's key."""
        self._not_before = 0.0
        """When the next request may be sent, by the monotonic clock."""
        self._reported: set[str] = set()
        self._overhead = _OVERHEAD_TOKENS
        answers = [(q, ledger.answers[key]) for key, q in self.by_key.items() if key in ledger.answers]
        for question, answer in answers:
            self._learn_overhead(question, answer)
        self._spent_usd = self.lost_usd + sum(self._cost(*pair) for pair in answers)
        """The most that all requests for these questions may have cost, whenever they were sent."""

    @property
    def missing(self) -> list[Question]:
        """The questions without an answer."""
        return [q for key, q in self.by_key.items() if key not in self.ledger.answers and key not in self.refused]

    @property
    def lost_usd(self) -> float:
        """The most that requests without an answer may have cost."""
        return sum(self.most_usd(q) * self.ledger.lost[key] for key, q in self.by_key.items())

    def usd(self, input_tokens: float | None, output_tokens: float | None) -> float | None:
        """What so many tokens cost; None: the suite has no prices, or the server does not count its tokens."""
        prices = self.reference.usd_per_million_tokens
        if prices is None or input_tokens is None or output_tokens is None:
            return None
        return (input_tokens * prices.input + output_tokens * prices.output) / 1e6

    def most_usd(self, question: Question) -> float:
        """The most that an answer may cost; 0 where the suite has no prices."""
        input_tokens, output_tokens = question.most_tokens
        return self.usd(input_tokens + self._overhead, output_tokens) or 0.0

    def _cost(self, question: Question, answer: Answer) -> float:
        cost = self.usd(answer.input_tokens, answer.output_tokens)
        return self.most_usd(question) if cost is None else cost

    def _learn_overhead(self, question: Question, answer: Answer) -> None:
        """Note how many tokens the server adds to a prompt, where there are more than was thought."""
        self._overhead = max(self._overhead, (answer.input_tokens or 0) - question.most_tokens[0])

    def ask(self, secret: str, stop: Stop, notify: Notify, attempts: int) -> None:
        """Ask all that is missing, in a thread, as the caller's may have an event loop. Raises UserError."""
        if missing := self.missing:
            self._secret, self._stop, self._notify, self._attempts = secret, stop, notify, attempts
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, self._ask(missing)).result()

    async def _ask(self, missing: Sequence[Question]) -> None:
        import openai

        host = urlsplit(self.reference.api.base_url).hostname or ""
        is_here = host in ("localhost", "::1") or host.startswith("127.")  # where no proxy leads to
        client = openai.AsyncOpenAI(
            api_key=self._secret or "none", base_url=self.reference.api.base_url, max_retries=0,
            timeout=self.reference.timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_here),
        )  # fmt: skip
        queue, reported, end = iter(missing), time.monotonic(), float("inf")

        async def work() -> None:
            for question in queue:
                try:
                    await self._answer(client, question)
                except HaltError as halt:
                    self.halted = self.halted or halt
                if self.halted or self._stop:
                    return

        async with client:
            pending = tasks = {asyncio.create_task(work()) for _ in range(self.reference.at_once)}
            while pending:
                _, pending = await asyncio.wait(pending, timeout=0.2)
                end = min(end, time.monotonic() + STOP_SECONDS) if self._stop else end
                for task in pending if time.monotonic() > end else ():
                    task.cancel()
                if time.monotonic() > reported + _PROGRESS_SECONDS:
                    reported = time.monotonic()
                    self._notify(f"{len(self.questions) - len(self.missing)} of {len(self.questions)} answered")
            for task in tasks:
                if not task.cancelled():
                    task.result()

    async def _answer(self, client: openai.AsyncOpenAI, question: Question) -> None:
        """Ask until there is an answer, which goes into the ledger. Raises HaltError."""
        why = ""
        for attempt in range(self._attempts):
            while (wait := self._not_before - time.monotonic()) > 0 and not self._stop and not self.halted:
                await asyncio.sleep(min(wait, 0.2))
            if self._stop or self.halted:
                return
            most, bound = self.most_usd(question), self.reference.max_usd
            if bound is not None and self._spent_usd + most > bound:
                spent = f"{units.usd(self._spent_usd)} may be spent, and the next answer may cost {units.usd(most)}"
                raise HaltError(f"max_usd {bound:g}: {spent}; raise it to have the rest", settled=True)
            why, requested_wait = await self._send(client, question, most)
            if not why:
                return
            if requested_wait > MOST_WAIT_SECONDS:
                duration = units.duration(requested_wait)
                raise HaltError(f"{why}; it asks to wait {duration}: run the same command then")
            if attempt + 1 < self._attempts:
                backoff = requested_wait or 2.0**attempt * random.uniform(0.75, 1.25)
                if why not in self._reported or backoff > _PROGRESS_SECONDS:
                    self._notify(f"{why}; asking again in {units.seconds(backoff)}")
                self._reported.add(why)
                self._not_before = max(self._not_before, time.monotonic() + backoff)
        raise HaltError(
            f"{why}{f', {self._attempts} times; the same command goes on' if self._attempts > 1 else ''}"
        )

    async def _send(self, client: openai.AsyncOpenAI, question: Question, most: float) -> tuple[str, float]:
        """Send one request. Returns why there is no answer, or '', and the seconds that the server asks to wait."""
        import openai

        self.ledger.append(Line(question.key))
        self._spent_usd += most
        where, seconds, began = self.reference.api.base_url, self.reference.timeout_seconds, time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                reply: Any = await client.post(question.path, body=dict(question.body), cast_to=object)
            if isinstance(reply, str):  # a page, or a stream
                why = f"{where} sent what is no completion ({self._harmless(reply)[:60]})"
                if any(key in self.ledger.answers for key in self.by_key):  # a proxy's page, for a while
                    return why, 0.0
                raise HaltError(f"{why}: look at `base_url`, which mostly ends in /v1", is_mistake=True)
            lasted = round(time.perf_counter() - began, 6)
            answer = self._read_reply(question, msgspec.convert(reply, _Reply), lasted)
        except openai.APIStatusError as error:
            self.ledger.append(Line(question.key, refused=True))
            self._spent_usd -= most
            status, message = error.status_code, self._server_message(error.body)
            if (status in _TEMPORARY or status >= 500) and "insufficient_quota" not in message:
                return f"{where} answers {status} ({message})", _retry_after_seconds(error.response.headers)
            is_rare = len(self.refused) + 1 <= _MOST_REFUSED * len(self.questions)
            if status in _OF_ONE_TEXT and self.reference.prompt is not None and is_rare:
                self.refused[question.key] = f"{status}: {message}"
                return "", 0.0
            sentence = _refusal_sentence(self.reference, status, message)
            raise HaltError(sentence, is_mistake=True, status=status) from None
        except (TimeoutError, openai.APITimeoutError):
            return f"{where} gave no answer within {units.seconds(seconds)}", 0.0
        except openai.APIConnectionError as error:
            return f"the connection to {where} failed ({self._harmless(error.__cause__ or error)})", 0.0
        except (openai.OpenAIError, msgspec.DecodeError, ValueError) as error:
            return f"{where} sent what is no completion ({self._harmless(error)})", 0.0
        self._learn_overhead(question, answer)
        self._spent_usd += self._cost(question, answer) - most
        self.ledger.append(Line(question.key, answer=answer))
        return "", 0.0

    def _read_reply(self, question: Question, reply: _Reply, seconds: float) -> Answer:
        """Raises ValueError where the reply holds no answer."""
        if not reply.choices:
            raise ValueError(self._server_message(reply.error) if reply.error else "it has no choices")
        choice, usage = reply.choices[0], reply.usage or _Usage()
        text = (choice.message.content if choice.message else choice.text) or ""
        logprobs, end, nats, size = choice.logprobs or _Logprobs(), usage.prompt_tokens or 0, None, 0
        if question.path == "/completions" and text.startswith(question.text) and 1 < end <= len(logprobs.tokens):
            known = [value for value in logprobs.token_logprobs[1:end] if value is not None]
            nats = -sum(known) if len(known) == end - 1 else None  # the first token has no log-probability
            first = logprobs.tokens[0] if text.startswith(logprobs.tokens[0]) else ""
            size, text = len(question.text.encode()) - len(first.encode()), ""
        return Answer(
            text=self._without_key(text), seconds=seconds, finish=choice.finish_reason, nats=nats, bytes=size,
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens,
        )  # fmt: skip

    def _server_message(self, body: Any) -> str:
        """The message in the body of a server's refusal."""
        body = body.get("error", body) if isinstance(body, dict) else body
        words = [body.get(key) for key in ("message", "detail", "code")] if isinstance(body, dict) else [body]
        return self._harmless(", ".join(str(word) for word in words if word) or "without a word")

    def _harmless(self, words: object) -> str:
        return visible(self._without_key(str(words)), 200)

    def _without_key(self, text: str) -> str:
        """The text without the key, which a server may repeat; a short one, as local servers take, is no secret."""
        return text.replace(self._secret, "(the key)") if len(self._secret) >= 8 else text


def _retry_after_seconds(headers: Mapping[str, str]) -> float:
    """How many seconds the server asks to wait (RFC 9110, 10.2.3); 0: it does not say, or names a date."""
    retry_after = headers.get("retry-after", "")
    return float(retry_after) if re.fullmatch(r"\d{1,9}(\.\d+)?", retry_after) else 0.0


def _refusal_sentence(reference: Reference, status: int, message: str) -> str:
    """A sentence with the fix; without the message of a 401, which may hold parts of the key."""
    where, variable, model = reference.api.base_url, reference.api.key_env, visible(reference.api.model)
    if status == 401 and variable is None:
        return f"{where} asks for a key (401): say in which variable it is, `key_env: OPENAI_API_KEY`"
    if "max_completion_tokens" in message:
        fix = f"write `request: {{max_completion_tokens: {reference.max_tokens}}}`"
        return f"{where} takes no max_tokens ({status}: {message}): {fix}"
    sentences = {
        401: f"does not take the key in {variable} (401): put a valid one there",
        402: f"wants money (402: {message}): add credit to the account",
        403: f"does not let this key use {model} (403: {message}): take another model or key",
        404: f"knows no {model} (404: {message}): look at `model`, and at `base_url`, which mostly ends in /v1",
        429: f"has no credit left for this key (429: {message}): add some",
    }
    other = f"refuses the request ({status}: {message}): mend `prompt`, `max_tokens` or `request`"
    return f"{where} {sentences.get(status, other)}"


# A run's references: what is missing is asked, scored and written into its folder.


def unsettled(suite: Suite, prepared: Mapping[str, Prepared], folder: Path) -> list[str]:
    """Names of references of which the run's folder lacks an answer or a score. Raises UserError."""
    if not suite.references:
        return []
    stored, data = read_answers(folder), prepared[suite.baseline]
    asks = {name: _digest(suite, r, make_questions(r, suite, data)) for name, r in suite.references.items()}
    return [n for n, digest in asks.items() if n not in stored or not stored[n].settled or stored[n].asks != digest]


def _digest(suite: Suite, reference: Reference, questions: Sequence[Question]) -> str:
    scores = suite.built.eval.scores if isinstance(suite.built.eval, Eval) else []
    content = [reference.model_dump(mode="json"), [(q.key, q.target) for q in questions], scores]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def ask_references(
    suite: Suite, prepared: Mapping[str, Prepared], folder: Path, stop: Stop, notify: Notify, *, tries: bool = False
) -> None:
    """Ask the references, score their answers and write what the run's folder lacks of them.

    `tries`: ask each one question, so that what is wrong is known before hours of training; its answer is kept.
    Raises UserError then, or where something can't be written.
    """
    for name in unsettled(suite, prepared, folder):
        reference, ledger = suite.references[name], Ledger(suite.references[name])
        questions = make_questions(reference, suite, prepared[suite.baseline])
        secret = _secret(name, reference) if Asking(reference, questions, ledger).missing else ""

        def say(line: str, name: str = name) -> None:
            notify(f"reference {name}: {line}")

        with ledger.locked(stop, say) as is_ours:
            if not is_ours:
                return
            asking = Asking(reference, [min(questions, key=lambda q: len(q.text))] if tries else questions, ledger)
            if not tries and asking.missing:
                say(f"asking {visible(reference.api.model)} for {len(asking.missing)} of {len(questions)} answers")
            asking.ask(secret, stop, say, 1 if tries else ATTEMPTS)
        halted = asking.halted
        if not tries:
            outcome = _write_outcome(name, asking, suite, folder)
            why = f": {outcome.incomplete}" if outcome.incomplete else ""
            say(f"{outcome.answered} of {outcome.sentences} answered{why}")
        elif halted is not None and halted.is_mistake and reference.prompt is not None:
            raise UserError(f"references.{name}: {halted.why}; or leave them out: --set references=null")
        elif halted is not None:
            say(f"{halted.why}; it is asked after the trials")


def _secret(name: str, reference: Reference) -> str:
    """The API's key; '': none is needed. Raises UserError where the key or the package openai is missing."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            f"references.{name} needs the package openai: pip install 'selectbench[api]'"
        ) from None
    if (variable := reference.api.key_env) is None:
        return ""
    secret = os.environ.get(variable, "").strip()
    if secret and secret.isascii() and secret.isprintable():
        return secret
    problem = "holds what is no key" if secret else "is not set"
    fix = f"put the key of {reference.api.base_url} there"
    raise UserError(f"references.{name}: {variable} {problem}: {fix}; or leave them out: --set references=null")


def _write_outcome(name: str, asking: Asking, suite: Suite, folder: Path) -> ApiAnswers:
    """What the reference answered, with its scores; the run's folder holds it when this returns."""
    reference, questions, halted, stored = asking.reference, asking.questions, asking.halted, asking.ledger.answers
    answers, generates = [stored[q.key] for q in questions if q.key in stored], reference.prompt is not None
    texts = [
        (q, stored[q.key].text if q.key in stored else "")
        for q in questions
        if q.key in stored or q.key in asking.refused
    ]
    nats, size = _total([answer.nats for answer in answers]), sum(answer.bytes for answer in answers)
    incomplete, no_bits, silent = None, None, "the API tells no log-probabilities of a text"
    if not generates and nats is None and halted and halted.status not in (0, *_OF_THE_ACCOUNT):
        no_bits = f"{silent}: {halted.why}"
    elif len(texts) < len(questions):
        incomplete = halted.why if halted else "the run was stopped; the same command goes on"
    elif not generates and (nats is None or not size):
        no_bits = silent
    outcome = ApiAnswers(
        asks=_digest(suite, reference, questions), model=reference.api.model, base_url=reference.api.base_url,
        sentences=len(questions), answered=len(answers), refused=next(iter(asking.refused.values()), None),
        empty=sum(not a.text.strip() for a in answers) if generates else 0,
        cut=sum(a.finish == "length" for a in answers) if generates else 0,
        input_tokens=_total([a.input_tokens for a in answers]),
        output_tokens=_total([a.output_tokens for a in answers]),
        usd=_total([asking.usd(a.input_tokens, a.output_tokens) for a in answers]), lost_usd=asking.lost_usd,
        latency_median_seconds=median(a.seconds for a in answers) if answers else None, incomplete=incomplete,
        bits_per_byte=None if incomplete or no_bits or nats is None or not size else nats / size / log(2),
        no_bits=no_bits, settled=incomplete is None or (halted is not None and halted.settled),
        samples=[Sample(prompt=q.text, said=text, reference=q.target) for q, text in texts[:_SAMPLES] if generates],
    )  # fmt: skip
    if generates and incomplete is None:
        outcome = _with_scores(outcome, texts, suite)
    lines = [{"source": q.text, "reference": q.target, "hypothesis": text} for q, text in texts if generates]
    outcomes = {key: o for key, o in read_answers(folder).items() if key in suite.references} | {name: outcome}
    with writing(folder):
        (folder / "references").mkdir(exist_ok=True)
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(folder / "references" / f"{name}.jsonl", content)
        write_whole(folder / REFERENCES, ANSWERS.write(outcomes).decode() + "\n")
    return outcome


def _total(values: Sequence[Any]) -> Any:
    """The sum; None where one value is not known, or there are none."""
    return None if not values or None in values else sum(values)


def _with_scores(outcome: ApiAnswers, texts: Sequence[tuple[Question, str]], suite: Suite) -> ApiAnswers:
    assert isinstance(suite.built.eval, Eval)
    content: dict[str, object] = {
        "code": suite.code, "names": suite.built.eval.scores, "sources": [q.text for q, _ in texts],
        "references": [q.target for q, _ in texts], "hypotheses": [" ".join(text.split()) for _, text in texts],
    }  # fmt: skip
    python = suite.option(suite.baseline).choices.python
    try:
        result = ask_worker("score", content, python, suite, SCORE_SECONDS, "scoring what a reference answered")
    except TimeoutError:
        result = f"its scores take longer than {units.duration(SCORE_SECONDS)}"
    if isinstance(result, str):
        return msgspec.structs.replace(outcome, incomplete=result, settled=False)
    sentences = result["sentences"] and msgspec.convert(result["sentences"], Sentences)
    return msgspec.structs.replace(outcome, scores=result["scores"], kept=sentences)


def reference_lines(suite: Suite, prepared: Mapping[str, Prepared]) -> Iterator[str]:
    """What `plan` says of each reference: how many requests it takes, and what they cost."""
    for name, reference in suite.references.items():
        questions = make_questions(reference, suite, prepared[suite.baseline])
        asking = Asking(reference, questions, Ledger(reference))
        try:
            if asking.missing:
                _secret(name, reference)
        except UserError as error:
            yield str(error)
        tokens = [
            sum(q.most_tokens[0] for q in asking.missing) / _BYTES_PER_TOKEN,
            sum(len(q.target.encode()) / _BYTES_PER_TOKEN if q.target else 1 for q in asking.missing),
        ]
        known = len(asking.questions) - len(asking.missing)
        where = f"{visible(reference.api.model)} at {reference.api.base_url}"
        line = f"reference {name}: {len(asking.missing)} requests to {where}"
        line += f" ({known} are answered already)" if known else ""
        line += f", about {units.count(round(tokens[0]))} tokens in and {units.count(round(tokens[1]))} out"
        if (about := asking.usd(*tokens)) is None:
            yield f"{line}; what they cost is not known without usd_per_million_tokens"
        else:
            most = units.usd(sum(map(asking.most_usd, asking.missing)))
            bound = "" if reference.max_usd is None else f"; it stops before {units.usd(reference.max_usd)}"
            yield f"{line}: about {units.usd(about)}, at most {most}{bound}"
