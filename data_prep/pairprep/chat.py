"""Turns a row's prompt, chosen and rejected, plain text or chat messages, into three plain texts.

Understands HuggingFace's kinds of preference sets: plain strings; message lists with an explicit prompt; and
implicit prompts, where chosen and rejected are whole conversations that share their leading messages.
Chat templates are Jinja, run in a sandbox since they come with the model and not with this program.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import FieldError, InputError, describe

Message = dict[str, Any]
KINDS = "a text or a list of messages {role, content}"


@dataclass(frozen=True, slots=True)
class PairText:
    """A pair as text. The key_* texts identify the untemplated prompt and answers when splits are made."""

    prompt: str
    chosen: str
    rejected: str
    templated: bool
    key_prompt: str
    key_chosen: str
    key_rejected: str


class ChatTemplate:
    """A model's chat template as HuggingFace runs it (trim_blocks, lstrip_blocks, loop controls, tojson)."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        # strftime_now stays undefined on purpose: with it the same input would give another file tomorrow, and
        # templates that use it (Llama 3's) fall back to a fixed date.
        environment.globals["raise_exception"] = self._raise
        self._special_tokens = special_tokens
        self._error = jinja2.TemplateError
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template is not valid Jinja: {error}") from error

    @staticmethod
    def _raise(message: str) -> None:
        raise ValueError(message)

    def render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """The conversation as text; with add_generation_prompt it ends where the assistant begins to speak."""
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except (self._error, ValueError, TypeError) as error:
            raise FieldError("messages", "a conversation that the chat template accepts", f"'{error}'") from error


class PlainChat:
    """Stands in for a template where the user asked for it: one 'role: content' paragraph for each message."""

    def render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return text + "\n\nassistant:" if add_generation_prompt else text


def load_chat_template(model_dir: Path) -> ChatTemplate | None:
    """The template from chat_template.jinja or tokenizer_config.json (a text, or a list with a 'default')."""
    config_path = model_dir / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if config_path.is_file():
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config_path}: expected JSON, found {error}") from error
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    own_file = model_dir / "chat_template.jinja"
    if own_file.is_file():
        source = own_file.read_text(encoding="utf-8")
    if not isinstance(source, str):
        return None
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    return ChatTemplate(source, special)


class PairFormatter:
    """Rows to PairText.

    mode "auto": messages get the template, plain texts stay plain; "always": a plain prompt becomes a user
    message and a plain answer an assistant message; "never": message lists are refused.
    join "exact": a plain prompt and answer are put together as they are (as TRL does); "space": with one space
    between them where neither side has white space.
    """

    def __init__(self, template: ChatTemplate | PlainChat | None, mode: str = "auto", join: str = "exact") -> None:
        self._template = template
        self._mode = mode
        self._join = join

    def __call__(self, values: dict[str, Any]) -> PairText:
        """Raises FieldError naming the field that is missing, empty or of the wrong kind."""
        if {"completion", "label"} <= values.keys() and not {"chosen", "rejected"} & values.keys():
            raise FieldError("chosen", "pairs (prompt, chosen, rejected), on which --loss kto runs, too",
                             "single judged answers (prompt, completion, label)")
        prompt = _text_or_messages(values, "prompt", optional=True)
        chosen = _text_or_messages(values, "chosen")
        rejected = _text_or_messages(values, "rejected")
        if all(isinstance(part, str) for part in (prompt, chosen, rejected)) and self._mode != "always":
            return self._plain(prompt, chosen, rejected)  # type: ignore[arg-type]
        if prompt is None and (isinstance(chosen, str) or isinstance(rejected, str)):
            raise FieldError("prompt", "a prompt, since chosen and rejected are plain texts", "none")
        if self._mode == "never":
            raise FieldError("chosen", "plain text, since chat templates are switched off", "chat messages")
        if self._template is None:
            raise FieldError(
                "chosen", "plain text, or a model with a chat template (see --plain-chat)",
                "chat messages and a model without a chat template",
            )
        return self._templated(*split_conversation(prompt, chosen, rejected))

    def _plain(self, prompt: str, chosen: str, rejected: str) -> PairText:
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.strip():
                raise FieldError(name, "an answer", "an empty text")
        keys = (prompt.strip(), chosen.strip(), rejected.strip())
        if self._join == "space":
            chosen, rejected = _spaced(prompt, chosen), _spaced(prompt, rejected)
        return PairText(prompt, chosen, rejected, False, *keys)

    def _templated(self, prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> PairText:
        assert self._template is not None
        if not prompt:
            raise FieldError("prompt", "at least one message before the answers", "none")
        for name, messages in (("chosen", chosen), ("rejected", rejected)):
            if not any(str(message["content"]).strip() for message in messages):
                raise FieldError(name, "an answer", "an empty text")
        before = self._template.render(prompt, prompt[-1]["role"] != "assistant")
        with_chosen = self._template.render(prompt + chosen, False)
        with_rejected = self._template.render(prompt + rejected, False)
        # Some templates render the last user turn otherwise once an answer follows; only what all three share
        # is certainly the prompt, the rest then counts as response.
        cut = len(os.path.commonprefix([before, with_chosen, with_rejected]))
        keys = (_key(prompt), _key(chosen), _key(rejected))
        return PairText(with_chosen[:cut], with_chosen[cut:], with_rejected[cut:], True, *keys)


def split_conversation(
    prompt: str | list[Message] | None, chosen: str | list[Message], rejected: str | list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """(messages before, chosen messages, rejected messages), from any mixture of texts and message lists."""
    chosen_turns = [{"role": "assistant", "content": chosen}] if isinstance(chosen, str) else chosen
    rejected_turns = [{"role": "assistant", "content": rejected}] if isinstance(rejected, str) else rejected
    if isinstance(prompt, list):
        n = len(prompt)
        if chosen_turns[:n] == prompt and rejected_turns[:n] == prompt and min(
            len(chosen_turns), len(rejected_turns)
        ) > n:
            return prompt, chosen_turns[n:], rejected_turns[n:]  # the answers repeat the prompt
        return prompt, chosen_turns, rejected_turns
    # Implicit prompt: the shared leading messages, but each side keeps at least one message of its own.
    shared = 0
    for left, right in zip(chosen_turns[:-1], rejected_turns[:-1]):
        if left != right:
            break
        shared += 1
    if shared:
        # A plain prompt beside whole conversations (UltraFeedback's form) repeats what they begin with.
        return chosen_turns[:shared], chosen_turns[shared:], rejected_turns[shared:]
    if prompt is None or not prompt.strip():
        raise FieldError("prompt", "a prompt, or chosen and rejected that share their leading messages", "neither")
    return [{"role": "user", "content": prompt}], chosen_turns, rejected_turns


def _text_or_messages(values: dict[str, Any], field: str, optional: bool = False) -> str | list[Message] | None:
    value = values.get(field)
    if optional and (value is None or value == []):
        return None
    if isinstance(value, str):
        _check_unicode(field, value)
        return value
    if field not in values:
        raise FieldError(field, KINDS, f"none (the row has {', '.join(sorted(map(str, values))[:8])})")
    if not isinstance(value, list):
        raise FieldError(field, KINDS, describe(value))
    if not value and field != "prompt":
        raise FieldError(field, "an answer", "an empty list of messages")
    messages = []
    for index, message in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(message, dict):
            raise FieldError(place, "a message {role, content}", describe(message))
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                raise FieldError(f"{place}.{part}", "a text", describe(message.get(part)))
            _check_unicode(f"{place}.{part}", message[part])
        # Other fields of a message (names, scores) would make shared leading messages look different.
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _check_unicode(field: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(field, "valid Unicode", f"a lone surrogate at character {error.start}") from error


def _spaced(prompt: str, answer: str) -> str:
    seam_is_bare = prompt and not prompt[-1].isspace() and not answer[0].isspace()
    return " " + answer if seam_is_bare else answer


def _key(messages: list[Message]) -> str:
    if len(messages) == 1:
        return messages[0]["content"].strip()
    return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
