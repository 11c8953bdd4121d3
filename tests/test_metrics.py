import numpy as np
import pytest
import torch
import torch.nn.functional as F

from component import metrics
from component.metrics import retrieval_metrics, retrieval_ranks


def ranks(scores, pairs):
    """Ranks for a hand-written score matrix (queries, gallery); the gallery items are unit vectors."""
    scores = torch.tensor(scores, dtype=torch.float32)
    query, answer = torch.tensor(pairs).T
    return retrieval_ranks(scores, torch.eye(scores.shape[1]), query, answer).tolist()


def test_the_rank_counts_the_items_before_the_right_answer():
    assert ranks([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], [(0, 0), (1, 1), (2, 2)]) == [1, 2, 3]


def test_a_tie_counts_against_the_model():
    assert ranks([[0.5, 0.5, 0.1]], [(0, 0)]) == [2]
    assert ranks([[0.0, 0.0, 0.0]], [(0, 1)]) == [3]


def test_the_best_right_answer_counts_and_the_others_do_not_lower_its_rank():
    assert ranks([[0.9, 0.8, 0.7, 0.6]], [(0, 2), (0, 1)]) == [2]
    assert ranks([[0.9, 0.9, 0.1, 0.1]], [(0, 0), (0, 1)]) == [1]


def test_chunks_do_not_change_the_ranks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (23, 17), generator=generator).float()  # many ties
    query = torch.cat([torch.arange(23), torch.arange(23)]).flip(0)
    answer = torch.randint(0, 17, (46,), generator=generator)
    whole = retrieval_ranks(scores, torch.eye(17), query, answer)
    monkeypatch.setattr(metrics, "_SCORES_PER_CHUNK", 3 * 17)
    assert torch.equal(retrieval_ranks(scores, torch.eye(17), query, answer), whole)


def test_recalls_of_two_captions_per_image_and_one_caption_for_two_images():
    # images A=(1,0,0), B=(0,1,0), C=(0,0,1); "a1" and "a2" describe A, "bc" describes both B and C
    image = torch.eye(3)[[0, 0, 1, 2]]
    text = torch.tensor([[1.0, 0, 0], [0.4, 0.9, 0], [0, 0.1, 0.9], [0, 0.1, 0.9]])
    result = retrieval_metrics(image, text, np.array([10, 10, 11, 12]), np.array([1, 2, 3, 3]))
    # text → image: a1 finds A first; a2 finds B before A; bc finds C first: 2 of 3
    assert result["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert result["text_to_image_recall@5"] == 1
    # image → text: A finds a1 first; B finds a2 (0.9) before bc (0.1); C finds bc first: 2 of 3
    assert result["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert result["mean_recall"] == pytest.approx((2 / 3 + 1 + 1 + 2 / 3 + 1 + 1) / 6)
    assert result["text_to_image_median_rank"] == 1


def test_recall_agrees_with_scikit_learn():
    from sklearn.metrics import top_k_accuracy_score

    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(60, 8, generator=generator), dim=-1)
    text = F.normalize(image + 0.8 * torch.randn(60, 8, generator=generator), dim=-1)
    ids = np.arange(60)
    result = retrieval_metrics(image, text, ids, ids)
    for k in (1, 5, 10):
        theirs = top_k_accuracy_score(ids, (text @ image.T).numpy(), k=k, labels=ids)
        assert result[f"text_to_image_recall@{k}"] == pytest.approx(theirs)
