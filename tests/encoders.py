"""Tiny random encoders and encoder-decoders, which are read and never cut: `ENCODERS["bert"]()`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from zoo import CONTEXT, VOCAB_SIZE

_TOKENS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = _TOKENS | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_T5 = _TOKENS | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
_T5 |= {"decoder_start_token_id": 0}


def _build(cls: str, config: str, options: dict[str, Any]) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, cls)(getattr(transformers, config)(**options))
        for parameter in model.parameters():
            gain = parameter.dim() == 1 and bool((parameter == 1).all())
            torch.nn.init.normal_(parameter, mean=1.0 if gain else 0.0, std=0.15)
    return model.eval().requires_grad_(False)


ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": partial(_build, "BertModel", "BertConfig", _BERT | {"max_position_embeddings": CONTEXT}),
    "roberta": partial(
        _build, "RobertaModel", "RobertaConfig", _BERT | {"max_position_embeddings": CONTEXT + 1}
    ),
    "xlm-roberta": partial(
        _build, "XLMRobertaModel", "XLMRobertaConfig", _BERT | {"max_position_embeddings": CONTEXT + 1}
    ),
    "t5": partial(_build, "T5Model", "T5Config", _T5),
    "t5-gated": partial(_build, "T5Model", "T5Config", _T5 | {"feed_forward_proj": "gated-gelu"}),
    "mt5": partial(_build, "MT5Model", "MT5Config", _T5 | {"feed_forward_proj": "gated-gelu"}),
}
WITH_HEAD = {  # as they lie on the hub
    "bert": partial(_build, "BertForMaskedLM", "BertConfig", _BERT | {"max_position_embeddings": CONTEXT}),
    "roberta": partial(
        _build, "RobertaForMaskedLM", "RobertaConfig", _BERT | {"max_position_embeddings": CONTEXT + 1}
    ),
    "t5": partial(_build, "T5ForConditionalGeneration", "T5Config", _T5),
}
