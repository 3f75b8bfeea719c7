import torch

from recplug.plugins.magnet.content import Content, mix

EDGES = torch.tensor([[1, 1, 1, 2, 2, 3, 1], [1, 2, 3, 3, 5, 3, 1]])  # user 1 had item 1 twice; user 4 nothing


def made(modalities, edges=EDGES, content_width=0):
    torch.manual_seed(0)
    return Content(modalities=modalities(8), n_rows=9, n_users=5, edges=edges, width=4, content_width=content_width)


def slow_item(cues, content, m, i):
    modality = content[m]
    if i >= len(modality.present) or not modality.present[i]:
        return torch.zeros(4), False
    x = modality.values[i].float()
    return cues.maps[m](x / x.norm()), True


def slow_user(cues, content, m, history):
    found = [slow_item(cues, content, m, i) for i in history]
    there = [h for h, present in found if present]
    return (torch.stack(there).mean(dim=0), True) if there else (torch.zeros(4), False)


def test_items_and_users_are_the_loop(modalities):
    cues, content = made(modalities), modalities(8)
    with torch.no_grad():
        for layer in cues.maps:
            layer.bias.normal_()
    found, there = cues.items(torch.arange(9))
    for i in range(9):
        for m in range(2):
            expected, present = slow_item(cues, content, m, i)
            assert bool(there[i, m]) == present
            assert torch.allclose(found[i, m], expected, atol=1e-5)
    found, there = cues.users(torch.arange(5))
    histories = [[], [1, 2, 3], [3, 5], [3], []]
    for u, history in enumerate(histories):
        for m in range(2):
            expected, present = slow_user(cues, content, m, history)
            assert bool(there[u, m]) == present, (u, m)
            assert torch.allclose(found[u, m], expected, atol=1e-5)


def test_leaving_one_out_is_the_shorter_history(modalities):
    cues, content = made(modalities), modalities(8)
    users, without = torch.tensor([1, 1, 2, 2, 3]), torch.tensor([2, 3, 3, 5, 3])
    found, there = cues.users(users, without)
    histories = {1: [1, 2, 3], 2: [3, 5], 3: [3]}
    for row, (u, out) in enumerate(zip(users.tolist(), without.tolist(), strict=True)):
        for m in range(2):
            expected, present = slow_user(cues, content, m, [i for i in histories[u] if i != out])
            assert bool(there[row, m]) == present
            assert torch.allclose(found[row, m], expected, atol=1e-5)


def test_wide_content_is_projected(modalities):
    cues = made(modalities, content_width=3)
    assert [layer.in_features for layer in cues.maps] == [3, 3]


def test_mix_renormalises_over_what_is_there():
    weights = torch.tensor([[0.8, 0.1, 0.1], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    z, cues = torch.randn(2, 4), torch.randn(2, 2, 4)
    cues[1, 1] = 0.0
    x = mix(z, cues, torch.tensor([[True, True], [True, False]]), weights)
    assert torch.allclose(x[0, 0], 0.8 * z[0] + 0.1 * cues[0, 0] + 0.1 * cues[0, 1], atol=1e-6)
    assert torch.allclose(x[1, 0], (0.8 * z[1] + 0.1 * cues[1, 0]) / 0.9, atol=1e-6)
    assert torch.allclose(x[1, 1], cues[1, 0], atol=1e-6)
    assert torch.equal(x[1, 2], torch.zeros(4))  # nothing that it weighs is there
