"""report.html as text: whole, self-contained, and safe whatever a suite's strings hold."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from evidence.readme_table import kept_run
from made_records import make_failure, make_meters, make_record, make_suite, speed, with_curve
from msgspec.structs import replace
from report.rendered import render, render_page

from selectbench.analysis.ranking import rank
from selectbench.launch.publish import COMMAND, read_run
from selectbench.record.record import Completed, Record
from selectbench.suite.suite import Suite

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}</title></svg>"
BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Outline(HTMLParser):
    """Tags with their attributes, checked to be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(suite: Suite, records: list[Record], environment: dict[str, Any] | None = None) -> str:
    return render_page(suite, rank(suite, records), records, environment or {}, COMMAND)


def trials(option: str, values: list[float], **more: Any) -> list[Record]:
    made = [make_record(option, seed, **{**speed(value), **more}) for seed, value in enumerate(values)]
    final = more.get("final_loss", 5.5)
    return made if final is None else [with_curve(record, 4.0, 6.5, 6.0, final) for record in made]


def two_options() -> list[Record]:
    return trials("fp32", [100, 101, 103]) + trials("bf16", [200, 201, 206])


@pytest.mark.parametrize("suite", ["precision", "optimizer", "framework"])
def test_a_kept_run_is_one_small_file_that_asks_for_nothing(suite: str) -> None:
    stored = read_run(kept_run(suite))
    ranking = stored.ranking()
    text = render_page(stored.suite, ranking, stored.records, stored.environment, COMMAND)
    assert text == render_page(stored.suite, ranking, stored.records, stored.environment, COMMAND)
    assert len(text.encode()) < 200_000
    tags = Outline(text).tags
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    assert not [attributes for _, attributes in tags if "src" in attributes or "xlink:href" in attributes]
    assert not re.search(r"url\(|@import|https?://(?!arxiv|doi)[^\s<]*\.(js|css)", text)
    assert all(row.option in text for row in ranking.rows)
    assert '<h2 id="factors">' in text if ranking.factors else '<h2 id="factors">' not in text


def test_readable_without_eyes() -> None:
    tags = Outline(page(make_suite("fp32", BF16), two_options())).tags
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    pictures = [i for i, (tag, attributes) in enumerate(tags) if tag == "svg" and attributes.get("role") == "img"]
    assert pictures
    assert all(names[i + 1] == "title" for i in pictures)
    assert dict(tags[names.index("html")][1]) == {"lang": "en"}


def test_the_answer_comes_before_the_table_and_the_pictures_are_there() -> None:
    text = page(make_suite("fp32", BF16), two_options())
    assert text.index("bf16 is the fastest") < text.index('<h2 id="ranking">') < text.index('<h2 id="pictures">')
    for heading in ("Speed against memory", "Held-out loss against tokens", "Held-out loss against time",
                    "Step times"):  # fmt: skip
        assert f"<h3>{heading}</h3>" in text
    assert "Memory and power over time are not drawn" in text


def test_only_an_answer_that_is_settled_is_in_the_green_box() -> None:
    open_box, green_box = '<p class="answer open">', '<p class="answer">'
    suite = make_suite("fp32", BF16)
    assert green_box in page(suite, two_options())
    waited = {"cpu_seconds": 2.0, "cores_seconds": 5.0, "run_queue_wait_seconds": 3.0}
    busy = [
        replace(record, outcome=Completed(measurement=replace(record.outcome.measurement, **waited)))
        for record in two_options() if isinstance(record.outcome, Completed)
    ]  # fmt: skip
    alone = [record for record in two_options() if record.trial.option == "fp32"]
    alone += [make_failure("bf16", seed, "oom") for seed in suite.seeds]
    for records, words in ((busy, "The machine was busy"), (alone, "is the only option that could be ranked")):
        text = page(suite, records)
        assert words in text
        assert open_box in text
        assert green_box not in text


def test_meters_are_drawn_where_there_are_some() -> None:
    series = {"memory_series": [(0.0, 1e9), (1.0, 2e9)], "power_series": [(0.0, 100.0), (1.0, 300.0)]}
    text = page(make_suite("fp32", BF16, device="cuda"), trials("fp32", [1, 1, 1], meters=make_meters(series)))
    assert "<h3>Power over a trial</h3>" in text
    assert "not drawn" not in text


@pytest.mark.parametrize("name", [EVIL, "n" * 200, "a&b;<b>", "${x}`y`", "[x](javascript:1)"])
def test_a_name_is_text_wherever_it_stands(name: str) -> None:
    suite = make_suite(name, BF16, question=EVIL, seeds=[0, 1])
    records = [
        r for s in (0, 1) for r in (make_record(name, s), make_failure("bf16", s, "crashed", f"{EVIL}\n{EVIL}"))
    ]
    text = page(suite, records, {"cpu_model": EVIL, "libraries": {"torch": EVIL}})
    tags = Outline(text).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert "img" not in {tag for tag, _ in tags}
    assert not [a for _, a in tags if any(key.startswith("on") for key in a)]
    assert "49" not in re.findall(r"=x onerror=alert\(2\)&gt;(..)", text)


HOLES: dict[str, list[Record]] = {
    "nothing ran": [],
    "all failed": [make_failure(o, s, "oom") for o in ("fp32", "bf16") for s in range(3)],
    "one option all failed": trials("fp32", [1, 2, 3]) + [make_failure("bf16", s, "diverged") for s in range(3)],
    "one trial only": [make_record("fp32", 0)],
    "different n": trials("fp32", [1, 2, 3]) + trials("bf16", [4]),
    "extreme values": trials("fp32", [1e-300, 1e300, 1.0], final_loss=1e300) + trials("bf16", [5e-324, 1, 2]),
    "nothing measured": trials("fp32", [1, 1, 1], timed_steps=0, final_loss=None, peak_pss_growth_bytes=None,
                               step_seconds=[], step_time_median_seconds=None),
}  # fmt: skip


@pytest.mark.parametrize("records", HOLES.values(), ids=HOLES.keys())
def test_records_with_holes(records: list[Record]) -> None:
    text = page(make_suite("fp32", BF16), records)
    Outline(text)
    assert "nan" not in re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.S).lower().replace("dominan", "")
    assert "Infinity" not in text


def test_where_the_time_to_a_loss_decides_it_has_one_column_and_says_who_never_got_there() -> None:
    suite = make_suite("fp32", BF16, decide={"objective": "seconds_to_baseline_loss", "constraints": []})
    records = trials("fp32", [100, 101, 103]) + trials("bf16", [200, 201, 206], final_loss=6.0)
    table = page(suite, records).split('<table class="sortable">')[1].split("</table>")[0]
    assert len(re.findall(r"<th [^>]*>to (?:the )?baseline's loss", table.replace("&#39;", "'"))) == 1
    assert table.count("not reached with 3 of 3 seeds") == 1


def test_the_interval_has_a_line_of_its_own_and_the_comparison_stands_beside_the_figure() -> None:
    table = page(make_suite("fp32", BF16), two_options()).split('<table class="sortable">')[1]
    row = next(part for part in table.split("<tr ") if ">bf16<" in part)
    told = re.search(r"<td data-value=\"[\d.]+\">(2\.\d+x)<small>(\d\.\d+x to \d\.\d+x)</small><svg", row)
    assert told
    heads = re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", table.split("</thead>")[0])
    assert heads[:5] == ["#", "option", "tokens/s", "against the baseline", "state"]
    assert table.split("</thead>")[1].split("</tr>")[0].count("<td") + 1 == len(heads)


def test_an_interval_that_is_too_wide_for_numbers_is_drawn_to_both_edges() -> None:
    records = trials("fp32", [100, 100]) + trials("bf16", [200, 2e102])
    suite = make_suite("fp32", BF16, seeds=[0, 1])
    found = next(row for row in rank(suite, records).rows if row.option == "bf16").metrics["tokens_per_second"]
    assert (found.ratio_low, found.ratio_high) == (0.0, None)  # e to the power of -1,300 and of 1,600
    row = next(part for part in page(suite, records).split("<tr ") if ">bf16<" in part)
    assert "not measurable here" in row
    assert 'class="at"' not in row
    ends = re.search(r'class="span unclear" x1="([\d.]+)" y1="9.0" x2="([\d.]+)"', row)
    assert ends is not None
    assert [float(end) for end in ends.groups()] == [4.0, 126.0]


def picture_of(text: str) -> str:
    return text.split("<h3>Speed against memory</h3>")[1].split("</figure>")[0]


def markers(picture: str) -> dict[str, str]:
    found = re.findall(r'class="marker (\w+)"[^>]*><title>([^:]*):', picture)
    return {option: kind for kind, option in found}


def test_what_may_not_be_taken_is_a_cross_and_never_a_filled_point() -> None:
    """The fastest and smallest fails the constraint; of the others one dominates."""
    suite = make_suite("fp32", BF16, ("barred", {"optimizer": {"name": "adamw", "lr": 0.1}}))
    good = trials("fp32", [100, 101, 103]) + trials("bf16", [200, 201, 206])
    picture = picture_of(page(suite, good + trials("barred", [400, 401, 406], final_loss=7.0)))
    assert markers(picture) == {"fp32": "hollow", "bf16": "full", "barred": "cross"}
    assert picture.count("<circle") == 2
    assert "Cross: not eligible, as it fails a constraint" in picture
    without = picture_of(page(make_suite("fp32", BF16), good))
    assert markers(without) == {"fp32": "hollow", "bf16": "full"}
    assert "Cross:" not in without


def test_dominated_is_said_to_disregard_what_does_not_matter() -> None:
    """The loss of the faster one is worse, by less than the threshold."""
    suite, far = make_suite("fp32", BF16), "shown to be worse by less than matters, if at all, in all others"
    records = trials("fp32", [100, 101, 103], final_loss=5.5) + trials("bf16", [200, 201, 206], final_loss=5.5001)
    ranking = rank(suite, records)
    assert [row.dominated_by for row in ranking.rows] == [[], ["bf16"]]
    text = page(suite, records)
    assert far in picture_of(text)
    assert far in text.split('<ul class="notes">')[1]
    assert far in render(suite, ranking, records, {}, COMMAND)
    alike = trials("fp32", [100, 101, 103]) + trials("bf16", [100, 101, 103])
    assert far not in page(suite, alike).split('<ul class="notes">')[1].split("</ul>")[0]
    assert far not in render(suite, rank(suite, alike), alike, {}, COMMAND)


def test_the_method_names_the_thresholds_of_what_was_measured() -> None:
    records = two_options()
    text = page(make_suite("fp32", BF16, decide={"constraints": []}), records)
    assert "a measured ratio beyond the smallest factor that matters, up or down: tokens_per_second 1.01x" in text
    assert "bleu 0.01" not in text
    assert "by 1 test in all" in text
    assert "(3 seeds; one test, with its 96% interval.)" in text


def test_a_row_whose_constraint_is_open_is_marked_apart_from_one_that_fails() -> None:
    suite = make_suite("fp32", BF16, ("barred", {"optimizer": {"name": "adamw", "lr": 0.1}}))
    records = trials("fp32", [100, 101, 103]) + trials("bf16", [200])  # one seed shows no spread
    text = page(suite, records + trials("barred", [400, 401, 406], final_loss=7.0))
    kinds = re.findall(r'<tr class="(\w+)"><td[^>]*>[^<]*</td><th scope="row">(\w+)', text)
    assert {option: kind for kind, option in kinds} == {"fp32": "first", "bf16": "undecided", "barred": "barred"}


def test_a_name_of_wide_letters_at_the_edge_of_the_picture_is_not_cut() -> None:
    wide, mib = "mmm", 2**20
    records = trials("fp32", [100, 101, 103], peak_pss_growth_bytes=100 * mib)
    records += trials(wide, [200, 201, 206], peak_pss_growth_bytes=797 * mib)
    picture = picture_of(page(make_suite("fp32", wide), records))
    edge = float(picture.split('viewBox="0 0 ')[1].split()[0])
    (label,) = (tag for tag in re.findall(r"<text[^>]*>[^<]*", picture) if tag.endswith(f">{wide}"))
    left = float(label.split(' x="')[1].split('"')[0])
    assert "start" not in label or left + 12 * len(wide) <= edge, label
