"""A language model of ``transformers`` on this machine: it writes answers, and weighs given ones."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recplug.adapters import optional_imports
from recplug.adapters.factors.llm.chat import Answer, Mode, Rejected, Request
from recplug.plugins.errors import RecplugError, one_line

TOGETHER = 32  # options weighed at once


class LocalChat:
    """A causal language model from a folder or the Hugging Face hub, read with ``transformers``.

    Nothing leaves this machine. ``HF_HUB_OFFLINE=1`` keeps it from looking for the model elsewhere. Code that comes
    with a model is never run.

    Args:
        folder: a folder, or a hub id.
        revision: of the hub's model.
        device: default the first GPU where there is one.

    Raises:
        RecplugError: without the package, or where the model cannot be had or read.
    """

    def __init__(self, folder: str, *, revision: str | None = None, device: str | None = None) -> None:
        transformers: Any = optional_imports.library("transformers")
        self.name = f"{folder}@{revision}" if revision else folder
        self.place, self.sampling = "this machine", "greedy"
        self.mode: Mode = "prompt"
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            given = {"revision": revision, "trust_remote_code": False}
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **given)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **given)
            self._model = model.to(self.device).eval()
        except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
            raise RecplugError(
                f"cannot read the model {self.name} ({one_line(error)[:200]}); give a folder with a causal language"
                " model and its tokenizer, or a hub id that can be reached"
            ) from None
        commit = getattr(self._model.config, "_commit_hash", None)
        self._version = f"{folder}@{commit}" if commit else self.name
        self._context: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self._busy = asyncio.Lock()

    def __repr__(self) -> str:
        return f"LocalChat({self.name!r}, device={str(self.device)!r})"

    async def ask(self, request: Request) -> Answer:
        """Write the likeliest answer. One that the model has no room for is empty and ends by ``"length"``."""
        if any(not isinstance(message["content"], str) for message in request.messages):
            raise Rejected(f"{self.name} reads no pictures on this machine; leave --images out, or use openai:MODEL")
        async with self._busy:
            return await asyncio.to_thread(self._write, request)

    async def close(self) -> None:
        """Let go of the model's memory."""
        self._model = self._tokenizer = None

    @torch.inference_mode()
    def score(self, prompt: str, options: Sequence[str]) -> list[float]:
        """The log-likelihood of each option as the whole answer to ``prompt``: of its tokens and of the end after them.

        Without the end, ``"red"`` would always beat ``"red wine"``. The prompt is read once for all options.

        Raises:
            RecplugError: where the model has no room for prompt and option.
        """
        start = self._ids(self._spoken([prompt]))  # [p]
        ends = [self._option(option) for option in options]
        needed = len(start) + max((len(end) for end in ends), default=0)
        if self._context is not None and needed > self._context:
            raise RecplugError(
                f"a question takes {needed} tokens and {self.name} reads {self._context}; use a model that reads more,"
                " or shorten the definitions in the schema"
            )
        read = self._model(start.unsqueeze(0), use_cache=True)
        first = F.log_softmax(read.logits[0, -1].float(), dim=-1)  # [V]
        scores: list[float] = []
        for at in range(0, len(ends), TOGETHER):
            scores += self._weighed(start, first, read.past_key_values, ends[at : at + TOGETHER])
        return scores

    def _weighed(self, start: Tensor, first: Tensor, cache: Any, ends: list[Tensor]) -> list[float]:
        ids = pad_sequence(ends, batch_first=True)  # [n, o]
        # Padding stands on the right, where nothing that counts can see it.
        there = pad_sequence([torch.ones_like(end) for end in ends], batch_first=True).bool()  # [n, o]
        parts = first[ids[:, :1]]  # [n, 1]
        if ids.shape[1] > 1:
            if hasattr(cache, "batch_repeat_interleave"):
                cache = copy.deepcopy(cache)
                cache.batch_repeat_interleave(len(ends))
                logits = self._model(ids[:, :-1], past_key_values=cache).logits  # [n, o-1, V]
            else:  # older transformers: read the prompt again with every option
                whole = torch.cat([start.expand(len(ends), -1), ids[:, :-1]], dim=1)  # [n, p+o-1]
                logits = self._model(whole).logits[:, len(start) :]  # [n, o-1, V]
            later = F.log_softmax(logits.float(), dim=-1).gather(-1, ids[:, 1:].unsqueeze(-1))  # [n, o-1, 1]
            parts = torch.cat([parts, later.squeeze(-1)], dim=1)  # [n, o]
        return torch.where(there, parts, 0.0).sum(dim=1).tolist()

    @torch.inference_mode()
    def _write(self, request: Request) -> Answer:
        start = self._ids(self._spoken([message["content"] for message in request.messages]))  # [p]
        room = request.max_tokens
        if self._context is not None:
            room = min(room, self._context - len(start))
        if room < 1:
            return Answer("", "length", None, len(start), 0, self._version)
        pad = self._tokenizer.pad_token_id
        out = self._model.generate(
            start.unsqueeze(0),
            attention_mask=torch.ones_like(start).unsqueeze(0),
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=self._tokenizer.eos_token_id if pad is None else pad,
        )[0, len(start) :]  # [a]
        text = self._tokenizer.decode(out, skip_special_tokens=True).strip()
        return Answer(text, "length" if len(out) >= room else "stop", None, len(start), len(out), self._version)

    def _spoken(self, parts: Sequence[str]) -> str:
        """The prompt as the model was trained to hear it. One user turn: not every template has a system's."""
        text = "\n\n".join(parts)
        if not self._tokenizer.chat_template:
            return f"{text}\n"
        turn = [{"role": "user", "content": text}]
        return self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)

    def _ids(self, text: str) -> Tensor:
        """``[p]``; a chat template brings its special tokens along."""
        special = not self._tokenizer.chat_template
        return torch.tensor(self._tokenizer(text, add_special_tokens=special)["input_ids"], device=self.device)

    def _option(self, option: str) -> Tensor:
        """``[o]``: an option and the end of an answer."""
        ids = self._tokenizer(option, add_special_tokens=False)["input_ids"]
        end = self._tokenizer.eos_token_id if self._tokenizer.chat_template else None
        closing = self._tokenizer("\n", add_special_tokens=False)["input_ids"] if end is None else [end]
        return torch.tensor([*ids, *closing], device=self.device)
