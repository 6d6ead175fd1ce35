"""How well the texts and the music of the evaluation set find each other, computed on the model's device in blocks.

The figures are those of `clamp3.search.ranking` and `clamp3.search.metrics`, which compute in NumPy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clamp3.models.losses import rows_loss
from clamp3.search.metrics import metrics
from clamp3.search.ranking import QUERIES, REFERENCES, TIE, spans


def retrieval_figures(batches: list[Tensor], logit_scale: float) -> dict[str, float]:
    """Loss and retrieval metrics of features of (text, music) pairs, one tensor (batch, 2, hidden) a global batch.

    The loss is the mean over all pairs of their batch's contrastive loss; retrieval is among all pairs.
    """
    total = 0.0
    with torch.autocast(batches[0].device.type, enabled=False):
        for batch in batches:
            text, music = batch.unbind(1)
            total += float(rows_loss(text, music, text, music, logit_scale=logit_scale)) * len(batch)
        texts, music = torch.cat(batches).unbind(1)
        directions = {"text_to_music": (texts, music), "music_to_text": (music, texts)}
        ranks = {name: ranks_of_pairs(*pair).cpu().numpy() for name, pair in directions.items()}
    figures = {"eval_loss": total / len(texts)}
    for name, found in ranks.items():
        figures |= {f"{name}_{metric}": value for metric, value in metrics(found).items()}
    return figures


def ranks_of_pairs(queries: Tensor, references: Tensor) -> Tensor:
    """For row i of `queries` (n, hidden), the rank, from 1, of row i of `references` (n, hidden) by cosine: (n,).

    References that tie with the right one rank before it.
    """
    queries, references = _unit(queries), _unit(references)
    numbers = torch.arange(len(queries), device=queries.device)
    ahead = torch.zeros_like(numbers)
    for rows in spans(len(queries), QUERIES):
        own = (queries[rows] * references[rows]).sum(1, keepdim=True)  # (rows, 1)
        for block in spans(len(references), REFERENCES):
            scores = queries[rows] @ references[block].T  # (rows, block)
            wrong = numbers[rows, None] != numbers[None, block]
            ahead[rows] += ((scores >= own - TIE) & wrong).sum(1)
    return ahead + 1


def _unit(features: Tensor) -> Tensor:
    """Rows (n, hidden) scaled to length one, in float32; rows of zeros or with NaN become zeros: they tie with all."""
    features = features.float()
    norms = features.norm(dim=1, keepdim=True)
    usable = norms.isfinite() & (norms > 0)
    return F.normalize(torch.where(usable, features, 0), dim=1, eps=torch.finfo(torch.float32).tiny)
