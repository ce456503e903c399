import pytest

from jaxprobe.errors import InputError
from jaxprobe.sites import Site, choose_sites, last_block, parse_sites

IN_ORDER = ["embed", "0.mid", "mlp.0", "0", "1.mid", "mlp.1", "1", "mlp.9", "9", "10", "12", "final_norm"]


def test_names_go_both_ways_and_sort_as_the_forward_reaches_them():
    assert [str(site) for site in parse_sites(reversed(IN_ORDER))] == IN_ORDER
    assert parse_sites(["3", "3", "embed"]) == (Site("embed"), Site("block", 3))
    assert [Site.parse(name).letter for name in ("embed", "7", "7.mid", "mlp.7", "final_norm")] == [*"DDDFD"]
    assert [Site.parse(name).depth for name in ("embed", "12.mid", "mlp.12", "12", "13.mid")] == [
        0,
        12.5,
        12.75,
        13,
        13.5,
    ]
    assert Site.parse("17").words == "layer 17" and "layer 3" in Site.parse("mlp.3").words


NO_SITES = [
    "",
    "embed ",
    "-1",
    "01",
    "1.5",
    "mlp",
    "mlp.",
    "mlp.-1",
    "12.",
    "mlp.x",
    "1/2",
    "1e3",
    "9" * 40,
    "12.mid\n",
]


@pytest.mark.parametrize("name", [*NO_SITES, "../../evil", "/etc", "\N{ARABIC-INDIC DIGIT ONE}"])
def test_what_is_no_site_is_refused(name):
    with pytest.raises(InputError, match="no site of a model"):
        Site.parse(name)


def test_every_bad_name_is_told_at_once():
    with pytest.raises(InputError) as error:
        parse_sites(["a", "0", "b"])
    assert len(error.value.problems) == 2


def test_a_run_reads_the_stream_after_every_block_unless_told_otherwise():
    names = lambda *args, **options: [str(site) for site in choose_sites(*args, **options)]
    assert names(3) == ["embed", "0", "1", "2"]
    assert names(3, layers=[2, 0, 2], final_norm=True) == ["embed", "0", "2", "final_norm"]
    assert names(3, layers=[]) == ["embed"]
    assert names(3, sites=["mlp.2", "embed", "1.mid"]) == ["embed", "1.mid", "mlp.2"]
    for wrong in ({"layers": [3]}, {"layers": [-1]}, {"sites": ["mlp.3"]}):
        with pytest.raises(InputError, match="does not exist: the model has layers 0 to 2"):
            choose_sites(3, **wrong)
    with pytest.raises(InputError, match="last layer"):
        choose_sites(3, False, final_norm=True)


def test_the_last_block_that_is_needed():
    needed = lambda *names: last_block(parse_sites(names))
    assert [needed("embed"), needed("embed", "4"), needed("mlp.6", "2"), needed("0", "final_norm")] == [0, 4, 6, None]
