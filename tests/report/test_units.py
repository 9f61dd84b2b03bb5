import pytest

from selectbench import units
from selectbench.report.document import Ratio, value_text


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (units.count, 11420.3, "11,420"), (units.count, 12.3456, "12.35"), (units.count, 1e20, "1.000e+20"),
        (units.size, 512, "512 B"), (units.size, 1.5 * 2**30, "1.50 GiB"), (units.size, 300 << 20, "300 MiB"),
        (units.size, 1023.9 * 2**20, "1,024 MiB"),
        (units.seconds, 0.00123, "1.23 ms"), (units.seconds, 4.5e-6, "4.50 us"), (units.seconds, 4.56, "4.56 s"),
        (units.seconds, 0, "0 s"), (units.seconds, 200, "3 min 20 s"),
        (units.duration, 59.6, "1 min 00 s"), (units.duration, 7800, "2 h 10 min"),
        (units.duration, 90000, "1 d 01 h"),
        (units.ratio, 1.0666, "1.07x"), (units.ratio, 0.00123, "0.00123x"), (units.ratio, 0, "0.00x"),
        (units.significant, 5.5, "5.500"), (units.significant, 1e300, "1.000e+300"), (units.significant, 0, "0"),
        (units.joules, 0.0123, "12.3 mJ"), (units.joules, 5.3e-7, "0.530 uJ"), (units.joules, 3030, "3,030 J"),
        (units.joules, 0, "0 J"), (units.watts, 312.4, "312 W"), (units.watts, 45.61, "45.6 W"),
        (units.usd, 5500.92, "5,500.92 USD"), (units.usd, 0.00694, "0.00694 USD"), (units.usd, 0, "0.00 USD"),
        (units.share, 0.412, "41.2%"), (units.share, 0.00042, "0.042%"), (units.share, 0, "0.0%"),
        (units.megahertz, 1.755e9, "1,755 MHz"), (units.celsius, 61.4, "61 °C"),
    ],
)  # fmt: skip
def test_shown(show: object, value: float, text: str) -> None:
    assert callable(show)
    assert show(value) == text


@pytest.mark.parametrize(
    "show",
    [units.count, units.size, units.seconds, units.duration, units.ratio, units.significant, units.joules,
     units.watts, units.usd, units.share, units.megahertz, units.celsius],
)  # fmt: skip
def test_unknown_is_a_dash(show: object) -> None:
    assert callable(show)
    assert show(None) == "-"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (6e11, "600.0 GFLOP"),
        (9.894e14, "989.4 TFLOP"),
        (137_500, "137.5 kFLOP"),
        (12, "0.01200 kFLOP"),
    ],
)
def test_arithmetic(value, shown):
    assert units.flops(value) == shown
    assert units.flops_per_second(value) == (shown if value is None else f"{shown}/s")


@pytest.mark.parametrize(
    ("value", "shown"), [(99.997, "100"), (99.99, "99.99"), (9.9996, "10.00"), (0.99996, "1.000"), (100.0, "100")]
)
def test_rounding_up_adds_no_digit(value: float, shown: str) -> None:
    assert units.count(value) == shown


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((1.2, 1.31), "1.25x (1.20x to 1.31x)"), ((1.2461, 1.2539), "1.250x (1.246x to 1.254x)"),
        ((None, 1.31), "1.25x"), ((0.5, 1.9), "1.25x (0.50x to 1.90x)"), ((1.001, 9.0), "1.25x (1.00x to 9.00x)"),
        ((5.15e-10, 2.94e7), "not measurable here"), ((0.5, 2.1), "not measurable here"),
        ((0.0, None), "not measurable here"),
    ],
)  # fmt: skip
def test_a_ratio_has_as_many_decimals_as_keep_the_ends_apart(
    ends: tuple[float | None, float | None], text: str
) -> None:
    assert value_text(Ratio(1.25, *ends)) == text


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.99, 0.996), "-0.035 nats (-0.050 to -0.020)"), ((0.9929, 0.9931), "-0.0350 nats (-0.0355 to -0.0345)"),
        ((None, None), "-0.035 nats"), ((0.4, 1.9), "not measurable here"),
    ],
)  # fmt: skip
def test_a_loss_is_compared_by_its_difference(ends: tuple[float | None, float | None], text: str) -> None:
    assert value_text(Ratio(0.993, *ends, "final_loss", 5.0)) == text
