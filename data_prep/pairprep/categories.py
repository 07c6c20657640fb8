"""Finds categories for pairs that have none: TF-IDF and k-means over prompts, named by their leading terms.

The result depends on the set of distinct texts and the seed, not on the rows' order or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .rows import InputError

MAX_TERMS = 20_000
MINI_BATCH_FROM = 20_000  # distinct texts above which the streaming variant of k-means is used
NAME_TERMS = 3


def cluster_texts(texts: Sequence[str], num_clusters: int, seed: int) -> list[str]:
    """The name of each text's cluster, e.g. 'film, great, story'; equal texts share a cluster.

    Raises InputError where there are fewer distinct texts than clusters, or no words at all.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits

    distinct = sorted(set(texts))
    if len(distinct) < num_clusters:
        raise InputError(f"--cluster: expected at least {num_clusters} distinct prompts, found {len(distinct)}")
    try:
        vectorizer = TfidfVectorizer(max_features=MAX_TERMS, stop_words="english", sublinear_tf=True)
        vectors = vectorizer.fit_transform(distinct)
    except ValueError as error:
        raise InputError(f"--cluster: expected prompts with words, found none ({error})") from error
    kind = MiniBatchKMeans if len(distinct) > MINI_BATCH_FROM else KMeans
    with threadpool_limits(limits=1):  # threads add up in an order that changes from run to run
        model = kind(n_clusters=num_clusters, random_state=seed, n_init=3).fit(vectors)
    names = _names(model.cluster_centers_, vectorizer.get_feature_names_out())
    name_of = {text: names[cluster] for text, cluster in zip(distinct, model.labels_)}
    return [name_of[text] for text in texts]


def _names(centers: np.ndarray, terms: np.ndarray) -> list[str]:
    names: list[str] = []
    for center in centers:
        leading = [terms[i] for i in np.argsort(-center, kind="stable")[:NAME_TERMS] if center[i] > 0]
        base = name = ", ".join(leading) or "other"
        count = 1
        while name in names:
            count += 1
            name = f"{base} ({count})"
        names.append(name)
    return names
