"""A reward for a generator of music: how well each piece fits its prompt, in one batch.

rewards(Embedder.from_pretrained("saas"), ["a slow waltz in D minor"], ["X:1\nM:3/4\nK:Dm\n…"])
"""

import numpy as np


def rewards(embedder, prompts, pieces, penalty=-1.0):
    """The cosines of prompts and pieces (n,); `penalty` for a piece that cannot be read."""
    music, errors = embedder.embed_any(pieces, errors="return")
    good = [place for place in range(len(pieces)) if place not in errors]
    found = np.full(len(pieces), penalty)
    found[good] = embedder.scores([prompts[place] for place in good], music[good])
    return found
