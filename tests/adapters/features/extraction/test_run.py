import os
import resource
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from recplug.adapters.features import FeatureTable
from recplug.adapters.features.extraction import Shard, merge
from recplug.adapters.features.extraction.plan import plan
from recplug.adapters.features.extraction.run import _today
from recplug.adapters.features.extraction.store import Store

MODALITIES = ("image", "text")


def stopping(toy, modality, after, stop):
    """A toy encoder that calls ``stop`` when it has encoded so many batches."""
    encoder = toy(modality)
    encode = encoder.encode

    def stopped(batch):
        if len(encoder.seen) == after:
            stop()
        return encode(batch)

    encoder.encode = stopped
    return encoder


def interrupt():
    raise KeyboardInterrupt


def by_hand(encoder, items, size):
    """The same vectors by a plain loop: batches of ``size``, texts the longest first, without what is broken."""
    order = list(range(len(items.tokens)))
    if items.modality == "text":
        order.sort(key=lambda i: (-len(items.contents[i].encode()), i))
    found = {}
    for start in range(0, len(order), size):
        ready, tensors = [], []
        for i in order[start : start + size]:
            if items.modality == "image":
                try:
                    Image.open(items.contents[i]).load()
                except OSError:
                    continue
                tensors.append(encoder.prepare(Image.open(items.contents[i]).convert("RGB")))
            ready.append(i)
        inputs = torch.stack(tensors) if tensors else encoder.prepare([items.contents[i] for i in ready])
        found |= dict(zip(ready, encoder.encode(inputs), strict=True))
    tokens = [items.tokens[i] for i in sorted(found)]
    return tokens, torch.stack([found[i] for i in sorted(found)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_table_is_what_a_plain_loop_gives(run, toy, items_of, tmp_path, modality, workers):
    report = run(modality, tmp_path / "t.safetensors", workers=workers)
    table = FeatureTable.load(tmp_path / "t.safetensors")
    tokens, vectors = by_hand(toy(modality), items_of(modality), 4)
    assert table.tokens == tuple(tokens)
    assert torch.equal(table.features, vectors)
    assert report.encoded == len(tokens)
    assert table.modality == modality
    assert table.metadata["encoder"] == "toy"
    assert table.metadata["created"] == "2023-11-14"


def test_who_is_missing_is_absent_and_listed(run, tmp_path, shop):
    report = run("image", tmp_path / "t.safetensors")
    lines = (tmp_path / "t.missing.tsv").read_text().splitlines()
    rows = {token: (file, reason) for token, file, reason in (line.split("\t") for line in lines[1:])}
    assert lines[0] == "token\tfile\treason"
    assert set(rows) == {"t4", "t30", "t9", "t33"} == {item.token for item in report.missing}
    assert rows["t4"] == ("", "no file")
    assert rows["t9"][0] == str(shop / "pictures" / "t9.png")
    assert "truncated" in rows["t9"][1]
    assert not {"t4", "t30", "t9", "t33"} & set(FeatureTable.load(tmp_path / "t.safetensors").tokens)


def test_cut_texts_are_counted(run, items_of, tmp_path):
    report = run("text", tmp_path / "t.safetensors")
    assert report.truncated == sum(len(text) > 24 for text in items_of("text").contents) > 0
    assert FeatureTable.load(tmp_path / "t.safetensors").metadata["truncated"] == f"{report.truncated} texts"


# Two writes a batch, rows and then the journal; so these are moments of the first, a middle and the last batch.
MOMENTS = [
    ("image", 0, "before"),
    ("text", 0, "half"),
    ("image", 0, "after"),
    ("text", 1, "half"),
    ("image", 1, "after"),
    ("text", 8, "half"),
    ("image", 8, "after"),
    ("text", 9, "half"),
    ("image", 9, "after"),
    ("text", 16, "after"),
    ("image", 17, "half"),
    ("text", 17, "after"),
]


@pytest.mark.parametrize(("modality", "call", "moment"), MOMENTS)
def test_a_run_killed_while_writing_goes_on_and_ends_in_the_same_bytes(
    run, toy, tmp_path, killed_at, modality, call, moment
):
    run(modality, tmp_path / "whole.safetensors")
    output = tmp_path / "t.safetensors"
    assert killed_at(lambda: run(modality, output), "_write", call, moment) == -signal.SIGKILL
    assert not output.exists()
    encoder = toy(modality)
    report = run(modality, output, encoder=encoder)
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    # Of the batches before the kill none is done again; the one under way is, unless its line was whole.
    whole = (call + 1) // 2 if (call % 2 and moment == "after") else call // 2
    assert report.fresh == max(report.items - 4 * whole, 0)
    batches = -(-report.items // 4)
    assert len(encoder.seen) == batches - whole
    assert (tmp_path / "t.partial").exists() == (modality == "image")  # where two pictures are broken


@pytest.mark.parametrize(("name", "calls"), [("replace", 6), ("rmdir", 1)])
def test_a_run_killed_while_beginning_or_ending_goes_on(run, tmp_path, killed_at, name, calls):
    run("text", tmp_path / "whole.safetensors")
    output = tmp_path / "t.safetensors"
    for call in range(calls):
        for moment in ("before", "after"):
            assert killed_at(lambda: run("text", output, overwrite=True), name, call, moment) == -signal.SIGKILL
            run("text", output, overwrite=True)
            assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
            assert not (tmp_path / "t.partial").exists()


def test_killed_from_outside_while_workers_load(run, toy, tmp_path):
    run("image", tmp_path / "whole.safetensors", batch=1)
    output, journal = tmp_path / "t.safetensors", tmp_path / "t.partial" / "journal.jsonl"
    for lines in (1, 12, 25):
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        child = os.fork()
        if not child:
            try:
                run("image", output, batch=1, workers=2, encoder=stopping(toy, "image", lines - before, signal.pause))
            finally:
                os._exit(1)
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert run("image", output, batch=1, workers=2).fresh == 39 - 25
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 40], ids=lambda count: f"{count} shards")
@pytest.mark.parametrize("modality", MODALITIES)
def test_merged_shards_are_equal_to_one_run_to_the_byte(run, tmp_path, modality, count):
    run(modality, tmp_path / "whole.safetensors")
    output = tmp_path / "t.safetensors"
    reports = [run(modality, output, shard=Shard(index, count)) for index in range(1, count + 1)]
    if count > 1:
        assert all(report.output is None for report in reports)
        merge(output)
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "t.missing.tsv").read_bytes() == (tmp_path / "whole.missing.tsv").read_bytes()


def test_shards_that_do_not_fit_are_refused(run, toy, tmp_path, told, killed_at, shop):
    output = tmp_path / "t.safetensors"
    told(lambda: merge(output), "no folders", "--shard 1/N")
    run("image", output, shard=Shard(1, 3))
    told(lambda: merge(output), "shards 2/3, 3/3", "missing")
    many = tmp_path / "many.safetensors"
    (tmp_path / "many.shard-1-of-999999").mkdir()
    assert len(told(lambda: merge(many), "9/999999 and 999,990 more of many")) < 500
    run("image", output, shard=Shard(3, 3))
    killed_at(lambda: run("image", output, shard=Shard(2, 3)), "_write", 3, "before")
    told(lambda: merge(output), "shard-2-of-3", "not finished", "8 items")
    run("image", output, shard=Shard(2, 3), encoder=toy("image", "other"), restart=True)
    told(lambda: merge(output), "encoder toy there, other here")
    run("image", output, shard=Shard(2, 3), restart=True)
    run("image", output, shard=Shard(1, 2))
    told(lambda: merge(output), "shards of 2 and 3")
    for file in (tmp_path / "t.shard-1-of-2").iterdir():
        file.unlink()
    (tmp_path / "t.shard-1-of-2").rmdir()
    for file in shop.glob("pictures/*"):
        os.utime(file, (1, 1))  # as on another machine, where files have another time
    run("image", output, shard=Shard(2, 3), restart=True)
    merge(output)
    told(lambda: merge(output), "exists", "--overwrite")


def test_work_of_other_settings_is_refused_by_name(run, toy, items_of, tmp_path, told, killed_at, shop):
    output = tmp_path / "t.safetensors"
    assert killed_at(lambda: run("image", output), "_write", 5, "before") == -signal.SIGKILL
    told(
        lambda: run("image", output, encoder=toy("image", "other")),
        "8 vectors",
        "encoder toy there, other here",
        "--restart",
    )
    told(lambda: run("image", output, batch=8), "batch 4 there, 8 here")
    told(lambda: run("image", output, dtype="float16"), "dtype float32 there, float16 here")
    told(lambda: run("image", output, encoder=toy("image", precision="bf16")), "precision fp32 there, bf16 here")
    told(lambda: run("image", output, items=items_of("text"), encoder=toy("text")), "there")
    held = (shop / "pictures" / "t2.png").stat()
    os.utime(shop / "pictures" / "t2.png", ns=(1, held.st_mtime_ns + 1))
    told(lambda: run("image", output), "item 't2' changed")
    os.utime(shop / "pictures" / "t2.png", ns=(1, held.st_mtime_ns))
    (shop / "pictures" / "t2.png").unlink()
    told(lambda: run("image", output), "items 39 of 41", "38 of 41")
    report = run("image", output, restart=True)
    assert report.fresh == report.items == 38


def test_a_changed_text_is_refused(run, shop, tmp_path, told, killed_at):
    output = tmp_path / "t.safetensors"
    killed_at(lambda: run("text", output), "_write", 5, "before")
    file = shop / "shop.item"
    file.write_text(file.read_text().replace("thing 2 ", "thinG 2 "))
    told(lambda: run("text", output), "item 't2' changed", "--restart")


def test_nothing_finished_is_nothing_to_lose(run, tmp_path, killed_at):
    output = tmp_path / "t.safetensors"
    assert killed_at(lambda: run("text", output), "_write", 0, "half") == -signal.SIGKILL
    assert run("text", output, batch=8).fresh == 35


def test_damaged_rows_and_lines_are_done_again(run, tmp_path, killed_at):
    """As after a power cut: the journal is ahead of the rows, or full of zeros."""
    run("text", tmp_path / "whole.safetensors")
    output = tmp_path / "t.safetensors"
    killed_at(lambda: run("text", output), "_write", 12, "before")  # six batches are there
    rows, journal = tmp_path / "t.partial" / "vectors.bin", tmp_path / "t.partial" / "journal.jsonl"
    data = bytearray(rows.read_bytes())
    data[4 * 5 * 4 + 3] ^= 1  # in batch 1
    rows.write_bytes(data[: 4 * 5 * 4 * 5 + 7])  # and batch 5 is not all there
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = b"\0" * (len(lines[3]) - 1) + b"\n"
    journal.write_bytes(
        b"".join(lines) + b'[1]\n{"batch": "x"}\n{"batch": 99, "crc": 0, "truncated": 0, "broken": {}}\n'
    )
    assert run("text", output).fresh == 35 - 3 * 4
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_repaired_pictures_are_tried_again_and_give_the_table_of_a_fresh_run(run, toy, shop, tmp_path, told):
    output = tmp_path / "t.safetensors"
    told(lambda: run("image", output, retry_broken=True), "t.partial", "leave --retry_broken out")
    first = run("image", output)
    assert first.folder == tmp_path / "t.partial"
    told(lambda: run("image", output), "exists", "--overwrite")
    Image.new("RGB", (9, 9), "red").save(shop / "pictures" / "t9.png")
    told(lambda: run("image", output, overwrite=True), "item 't9' changed")
    second = run("image", output, retry_broken=True)
    assert second.fresh == 8  # the batches of t9 and t33
    assert [item.token for item in second.missing] == ["t33", "t4", "t30"]
    run("image", tmp_path / "fresh.safetensors")
    assert output.read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()
    Image.new("RGB", (9, 9), "blue").save(shop / "pictures" / "t33.png")
    run("image", output, retry_broken=True)
    assert not (tmp_path / "t.partial").exists()
    run("image", tmp_path / "again.safetensors")
    assert output.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert [line.split("\t")[0] for line in (tmp_path / "t.missing.tsv").read_text().splitlines()[1:]] == ["t4", "t30"]


def test_two_runs_do_not_share_a_folder(run, tmp_path, told, in_process):
    def second():
        told(lambda: run("text", tmp_path / "t.safetensors"), "in use by another run")

    with Store(tmp_path / "t.partial"):
        assert in_process(second) == 0
    assert run("text", tmp_path / "t.safetensors").fresh == 35


def test_another_ones_folder_is_left_alone(run, tmp_path, told):
    (tmp_path / "t.partial").mkdir()
    (tmp_path / "t.partial" / "thesis.tex").write_text("mine")
    told(lambda: run("text", tmp_path / "t.safetensors", restart=True), "thesis.tex", "not ours")
    assert (tmp_path / "t.partial" / "thesis.tex").read_text() == "mine"


def test_a_damaged_plan_is_told(run, tmp_path, told, killed_at):
    output = tmp_path / "t.safetensors"
    for name, data in (("plan.json", b"{"), ("order.npy", b""), ("tokens.json", b'{"tokens": [], "missing": []}')):
        killed_at(lambda: run("text", output, restart=True), "_write", 5, "before")
        (tmp_path / "t.partial" / name).write_bytes(data)
        told(lambda: run("text", output), "damaged", "--restart")
    assert run("text", output, restart=True).fresh == 35


def test_a_full_disk_is_one_line_and_loses_nothing(run, toy, tmp_path, in_process):
    """A bound on the size of files stands for the disk: writing past it fails in the middle of a batch."""
    run("text", tmp_path / "whole.safetensors")
    output = tmp_path / "t.safetensors"

    def bounded():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        try:
            run("text", output)
        except Exception as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            (tmp_path / "said").write_text(f"{type(error).__name__}: {error}")

    # The plan alone has more bytes than that: it is there from before.
    with pytest.raises(KeyboardInterrupt):
        run("text", output, encoder=stopping(toy, "text", 3, interrupt))
    assert in_process(bounded) == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith("RecplugError: cannot write"), said
    assert "File too large" in said
    assert "run the same command again" in said
    kept = (tmp_path / "t.partial" / "journal.jsonl").read_bytes().count(b"\n")
    assert kept >= 3
    assert run("text", output).fresh == 35 - 4 * kept
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_interrupt_loses_nothing(run, toy, tmp_path):
    output = tmp_path / "t.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run("image", output, encoder=stopping(toy, "image", 5, interrupt), workers=2)
    assert run("image", output, workers=2).fresh == 39 - 5 * 4


def test_a_folder_that_cannot_be_written_is_told(run, tmp_path, told):
    (tmp_path / "file").write_text("")
    told(lambda: run("text", tmp_path / "file" / "t.safetensors"), "cannot write")


def broken_encoder(toy, modality, spoil):
    encoder = toy(modality)
    encode = encoder.encode

    def spoiled(batch):
        return spoil(encode(batch), len(encoder.seen))

    encoder.encode = spoiled
    return encoder


def test_vectors_that_are_no_numbers_are_refused_by_item(run, toy, tmp_path, told):
    output = tmp_path / "t.safetensors"

    def nan(vectors, batch):
        if batch == 2:
            vectors[1, 3] = float("nan")
        return vectors

    half = broken_encoder(toy, "image", nan)
    half.precision = "fp16"
    told(lambda: run("image", output, encoder=half), "item 't6'", "--precision fp32")
    assert not output.exists()
    report = run("image", output, encoder=broken_encoder(toy, "image", nan), restart=True)
    assert ("t6", "the encoder gives NaN or infinity") in {(item.token, item.reason) for item in report.missing}
    assert "t6" not in FeatureTable.load(output).tokens

    def large(vectors, batch):
        return vectors * (1e5 if batch == 3 else 1)

    again = tmp_path / "u.safetensors"
    told(
        lambda: run("image", again, encoder=broken_encoder(toy, "image", large), dtype="float16"),
        "'t10'",
        "--dtype float32",
    )
    run("image", again, encoder=broken_encoder(toy, "image", large), restart=True)


def test_half_precision_tables_round_what_full_ones_hold(run, tmp_path):
    run("text", tmp_path / "full.safetensors")
    run("text", tmp_path / "half.safetensors", dtype="float16")
    full, half = (FeatureTable.load(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    assert torch.equal(half.features, full.features.half())
    assert half.tokens == full.tokens


def test_memory_that_does_not_suffice_names_a_smaller_batch(run, toy, tmp_path, told):
    def huge(vectors, batch):
        return torch.empty(1 << 60)

    told(lambda: run("text", tmp_path / "t.safetensors", encoder=broken_encoder(toy, "text", huge)), "--batch 2")


def test_a_wrong_shape_is_refused(run, toy, tmp_path, told):
    encoder = broken_encoder(toy, "text", lambda vectors, batch: vectors[:, :3])
    told(lambda: run("text", tmp_path / "t.safetensors", encoder=encoder), "(4, 3)", "(4, 5)")


def test_nothing_readable_is_an_error_and_no_table(run, shop, tmp_path, told):
    for file in shop.glob("pictures/*"):
        file.write_bytes(b"no picture")
    output = tmp_path / "t.safetensors"
    told(
        lambda: run("image", output, workers=1),
        "not one of 39 items",
        "'t0'",
        "UnidentifiedImageError",
        "--retry_broken",
    )
    assert not output.exists()


def test_texts_without_a_known_token_are_masked(run, toy, items_of, tmp_path, told):
    encoder = toy("text")
    lengths = encoder.lengths
    encoder.lengths = lambda texts: [
        0 if text.startswith("thing 8 ") else n for text, n in zip(texts, lengths(texts), strict=True)
    ]
    report = run("text", tmp_path / "t.safetensors", encoder=encoder)
    assert ("t8", "no token that the encoder knows") in {(item.token, item.reason) for item in report.missing}
    assert "t8" not in FeatureTable.load(tmp_path / "t.safetensors").tokens
    encoder.lengths = lambda texts: [0] * len(texts)
    told(lambda: run("text", tmp_path / "u.safetensors", encoder=encoder), "knows no token")


def test_longest_texts_come_first_and_every_item_once():
    lengths = [3, 9, 9, 1, 5, 9]
    shards = [plan(6, 2, Shard(index, 2), lengths) for index in (1, 2)]
    assert shards[0].order.tolist() == [1, 2, 5, 4, 0, 3]
    assert [list(shard.batches) for shard in shards] == [[0, 2], [1]]
    assert [shards[0].row(batch) for batch in shards[0].batches] == [0, 2]
    everyone = np.concatenate([shard.items(batch) for shard in shards for batch in shard.batches])
    assert sorted(everyone.tolist()) == list(range(6))


def test_shards_are_written_i_of_n(told):
    assert Shard.parse("2/4") == Shard(2, 4)
    for wrong in ("0/4", "5/4", "2", "a/b", "1/0", "-1/2", ""):
        told(lambda wrong=wrong: Shard.parse(wrong), "--shard")


def test_the_date_can_be_set(monkeypatch, told):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert _today() == "1970-01-02"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    told(_today, "SOURCE_DATE_EPOCH", "unset")


def test_a_worker_that_dies_is_told(run, toy, tmp_path, told):
    class Deadly(toy):
        @property
        def prepare(self):
            return dies

    told(lambda: run("image", tmp_path / "t.safetensors", encoder=Deadly("image"), workers=1), "worker", "--batch")
    assert run("image", tmp_path / "t.safetensors").fresh == 39


def dies(image):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_the_library_cannot_prepare_is_broken(run, toy, tmp_path, workers):
    class Picky(toy):
        @property
        def prepare(self):
            return of_seven_rows

    report = run("image", tmp_path / "t.safetensors", encoder=Picky("image"), workers=workers)
    refused = [item for item in report.missing if item.reason == "cannot be prepared, ValueError: no, not this"]
    assert [item.token for item in refused] == [f"t{i}" for i in range(41) if i % 3 != 1 and i not in (4, 9, 30, 33)]


def of_seven_rows(image):
    if image.height != 7:
        raise ValueError("no,\nnot this")
    return torch.ones(3, 4, 4)
