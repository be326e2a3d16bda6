"""The server of llama.cpp, run in this process by the package xllamacpp."""

import contextlib
import json
import urllib.request

import pytest

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a local server is not reached through a proxy


@contextlib.contextmanager
def serving(path, context=128, adapter=None):
    """A `Server` of the GGUF file `path`, with the adapter in the file `adapter`. Skips without xllamacpp."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp, which is llama.cpp, is not installed")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.port = context, 1, 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # f16 by default
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    settings.cpuparams.n_threads, settings.warmup, settings.verbosity = 1, False, 0
    yield Server(xllamacpp.Server(settings))


class Server:
    """A server that answers. If it is collected before its first answer, it may hang, so wait for that."""

    def __init__(self, server):
        self.server = server  # it runs until it is collected
        with DIRECT.open(server.listening_address + "/health", timeout=120) as answer:
            assert json.load(answer)["status"] == "ok"

    def _post(self, route, **fields):
        request = urllib.request.Request(
            self.server.listening_address + route, json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with DIRECT.open(request, timeout=120) as answer:
            return json.load(answer)

    def ids(self, text, start=False):
        """The ids of a text, with special tokens as text. start: after the token that starts each prompt, if any"""
        return self._post("/tokenize", content=text, add_special=start, parse_special=False)["tokens"]

    def text(self, ids):
        return self._post("/detokenize", tokens=list(map(int, ids)))["content"]

    def log_probabilities(self, ids, vocab_size):
        """(V,) of the next token after ids.

        The server reports nothing if it chooses a token that is part of a character, so a bias makes it choose "A".
        The reported log-probabilities do not depend on the bias.
        """
        found = self._post(
            "/completion",
            prompt=list(map(int, ids)),
            n_predict=1,
            temperature=0,
            n_probs=vocab_size,
            cache_prompt=False,
            logit_bias=[[self.ids("A")[0], 1000]],
        )
        found = {one["id"]: one["logprob"] for one in found["completion_probabilities"][0]["top_logprobs"]}
        assert sorted(found) == list(range(vocab_size))
        return [found[id] for id in range(vocab_size)]

    def greedy(self, prompt, n):
        """The text of n greedy tokens after a prompt, a text or ids."""
        return self._post("/completion", prompt=prompt, n_predict=n, temperature=0)["content"]

    def chat(self, messages, n):
        """The greedy answer to a conversation, as text."""
        found = self._post("/v1/chat/completions", messages=messages, max_tokens=n, temperature=0)
        return found["choices"][0]["message"]["content"]

    def rendered(self, messages):
        """The prompt of a conversation under the chat template."""
        return self._post("/apply-template", messages=messages)["prompt"]
