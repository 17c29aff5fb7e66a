"""Published round trips: the runs of vmlatency, and Table 1 of Agesen et al.

Sources: ``results/*.txt`` of github.com/yulyugin/vmlatency (E. Iuliugin and contributors, 2017 to
2021); O. Agesen, J. Mattson, R. Rugina, J. Sheldon, "Software Techniques for Avoiding Hardware
Virtualization Exits", USENIX ATC 2012, Table 1.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["AGESEN_2012", "RUNS", "Run"]


class Run(NamedTuple):
    """One results file of vmlatency.

    Parameters
    ----------
    cpu : str
        Brand string.
    core : str
        Microarchitecture.
    profile : str
        Of the same core, or of the nearest that has a profile.
    ticks : int
        Of the time-stamp counter for one round trip: median of the loops of 64 iterations or more.
    least : int
        The quickest loop.
    repeats : bool
        Whether the loops agree with each other, and the part with its siblings.
    why : str
        If not, why not.
    """

    cpu: str
    core: str
    profile: str
    ticks: int
    least: int
    repeats: bool
    why: str = ""


#: Cycles of "hardware round-trip latency", by profile.
AGESEN_2012 = {
    "prescott_p4_672": 3963,
    "merom_core2": 1579,
    "penryn_core2": 1266,
    "nehalem": 1009,
    "westmere": 761,
    "sandy_bridge": 784,
}

RUNS = (
    Run(
        "Celeron N3150 @ 1.60GHz", "Airmont", "airmont_n3150",
        1114, 1114, True,
    ),
    Run(
        "Celeron G3900 @ 2.80GHz", "Skylake (client)", "skylake_client",
        632, 630, True,
    ),
    Run(
        "Core i3 U 330 @ 1.20GHz", "Westmere (Arrandale)", "westmere",
        816, 815, True,
    ),
    Run(
        "Core i3-2350M @ 2.30GHz", "Sandy Bridge", "sandy_bridge",
        1870, 1013, False, "its loops differ: the least is 63 % of the mean",
    ),
    Run(
        "Core i5 M 460 @ 2.53GHz", "Westmere (Arrandale)", "westmere",
        1724, 1723, False, "stable, but about twice its siblings; cause unknown",
    ),
    Run(
        "Core i5 760 @ 2.80GHz", "Nehalem (Lynnfield)", "nehalem",
        950, 933, True,
    ),
    Run(
        "Core i5-3317U @ 1.70GHz", "Ivy Bridge", "ivy_bridge_ep",
        612, 563, False, "its loops differ: the least is 85 % of the mean",
    ),
    Run(
        "Core i5-4200U @ 1.60GHz", "Haswell", "haswell",
        597, 541, True,
    ),
    Run(
        "Core i5-4300M @ 2.60GHz", "Haswell", "haswell",
        1128, 487, False, "its loops differ: the least is 44 % of the mean",
    ),
    Run(
        "Core i5-5300U @ 2.30GHz", "Broadwell", "broadwell_ep",
        509, 492, False, "its loops differ: the least is 87 % of the mean",
    ),
    Run(
        "Core i7-2600 @ 3.40GHz", "Sandy Bridge", "sandy_bridge",
        804, 785, True,
    ),
    Run(
        "Core i7-2635QM @ 2.00GHz", "Sandy Bridge", "sandy_bridge",
        2055, 1177, False, "its loops differ: the least is 66 % of the mean",
    ),
    Run(
        "Core i7-2670QM @ 2.20GHz", "Sandy Bridge", "sandy_bridge",
        1806, 1799, False, "stable, but about twice its siblings; cause unknown",
    ),
    Run(
        "Core i7-2760QM @ 2.40GHz", "Sandy Bridge", "sandy_bridge",
        1404, 614, False, "its loops differ: the least is 45 % of the mean",
    ),
    Run(
        "Core i7-4578U @ 3.00GHz", "Haswell", "haswell",
        620, 518, False, "its loops differ: the least is 80 % of the mean",
    ),
    Run(
        "Core i7-4700MQ @ 2.40GHz", "Haswell", "haswell",
        457, 435, True,
    ),
    Run(
        "Core i7-4770 @ 3.40GHz", "Haswell", "haswell",
        573, 530, True,
    ),
    Run(
        "Core i7-4790K @ 4.00GHz", "Haswell", "haswell",
        543, 543, True,
    ),
    Run(
        "Core i7-5557U @ 3.10GHz", "Broadwell", "broadwell_ep",
        532, 527, True,
    ),
    Run(
        "Core i7-5600U @ 2.60GHz", "Broadwell", "broadwell_ep",
        469, 469, True,
    ),
    Run(
        "Core i7-6700K @ 4.00GHz", "Skylake (client)", "skylake_client",
        632, 608, True,
    ),
    Run(
        "Core i7-7500U @ 2.70GHz", "Kaby Lake", "skylake_client",
        526, 526, True,
    ),
    Run(
        "Core i7-7700 @ 3.60GHz", "Kaby Lake", "skylake_client",
        566, 559, True,
    ),
    Run(
        "Core i7-7700K @ 4.20GHz", "Kaby Lake", "skylake_client",
        640, 628, True,
    ),
    Run(
        "Core i7-8559U @ 2.70GHz", "Coffee Lake", "skylake_client",
        438, 423, True,
    ),
    Run(
        "Core i7-8700K @ 3.70GHz", "Coffee Lake", "skylake_client",
        539, 534, True,
    ),
    Run(
        "Core i7-9700K @ 3.60GHz", "Coffee Lake", "skylake_client",
        534, 512, False, "its loops differ: the least is 86 % of the mean",
    ),
    Run(
        "Core i9-7900X @ 3.30GHz", "Skylake-X", "skylake_sp",
        954, 522, False, "its loops differ: the least is 59 % of the mean",
    ),
    Run(
        "Core2 T5600 @ 1.83GHz", "Merom", "merom_core2",
        1681, 1681, True,
    ),
    Run(
        "Core2 T7400 @ 2.16GHz", "Merom", "merom_core2",
        1681, 1681, True,
    ),
    Run(
        "Core2 Duo E8500 @ 3.16GHz", "Penryn", "penryn_core2",
        1118, 1118, True,
    ),
    Run(
        "Core2 Duo P9500 @ 2.53GHz", "Penryn", "penryn_core2",
        1196, 1196, True,
    ),
    Run(
        "Core2 Duo T9600 @ 2.80GHz", "Penryn", "penryn_core2",
        1118, 1118, True,
    ),
    Run(
        "Xeon X5650 @ 2.67GHz", "Westmere-EP", "westmere",
        723, 713, True,
    ),
    Run(
        "Xeon X5690 @ 3.47GHz", "Westmere-EP", "westmere",
        777, 763, True,
    ),
    Run(
        "Xeon E3-1241 v3 @ 3.50GHz", "Haswell", "haswell",
        565, 544, True,
    ),
    Run(
        "Xeon E3-1245 v3 @ 3.40GHz", "Haswell", "haswell",
        597, 597, True,
    ),
    Run(
        "Xeon E3-1270 v5 @ 3.60GHz", "Skylake (client)", "skylake_client",
        600, 590, True,
    ),
    Run(
        "Xeon E5-2609 v3 @ 1.90GHz", "Haswell-EP", "haswell_ep",
        874, 874, False, "high for its generation; the core may have run below its nominal clock",
    ),
    Run(
        "Xeon E5-2609 v4 @ 1.70GHz", "Broadwell-EP", "broadwell_ep",
        703, 702, False, "high for its generation; the core may have run below its nominal clock",
    ),
    Run(
        "Xeon E5-2670 0 @ 2.60GHz", "Sandy Bridge-EP", "sandy_bridge",
        687, 667, True,
    ),
    Run(
        "Xeon E5-2680 v2 @ 2.80GHz", "Ivy Bridge-EP", "ivy_bridge_ep",
        748, 691, True,
    ),
    Run(
        "Xeon E5-2680 v3 @ 2.50GHz", "Haswell-EP", "haswell_ep",
        470, 453, True,
    ),
    Run(
        "Xeon E5-2680 v4 @ 2.40GHz", "Broadwell-EP", "broadwell_ep",
        450, 423, True,
    ),
    Run(
        "Xeon E5-2690 0 @ 2.90GHz", "Sandy Bridge-EP", "sandy_bridge",
        728, 728, True,
    ),
    Run(
        "Xeon E5-2697 v2 @ 2.70GHz", "Ivy Bridge-EP", "ivy_bridge_ep",
        716, 686, True,
    ),
    Run(
        "Xeon E5-2697 v3 @ 2.60GHz", "Haswell-EP", "haswell_ep",
        458, 445, False, "its loops differ: the least is 84 % of the mean",
    ),
    Run(
        "Xeon E5-2697A v4 @ 2.60GHz", "Broadwell-EP", "broadwell_ep",
        881, 859, False, "stable, but about twice the E5-2680 v4; cause unknown",
    ),
    Run(
        "Xeon E5-2699 v4 @ 2.20GHz", "Broadwell-EP", "broadwell_ep",
        1060, 1060, False, "stable, but about twice the E5-2680 v4; cause unknown",
    ),
    Run(
        "Xeon Gold 6140 @ 2.30GHz", "Skylake-SP", "skylake_sp",
        636, 634, True,
    ),
    Run(
        "Xeon Gold 6142M @ 2.60GHz", "Skylake-SP", "skylake_sp",
        530, 516, True,
    ),
    Run(
        "Xeon Gold 6244 @ 3.60GHz", "Cascade Lake-SP", "cascade_lake_sp",
        1431, 1398, False, "stable, but about twice its siblings; cause unknown",
    ),
    Run(
        "Xeon Gold 6252N @ 2.30GHz", "Cascade Lake-SP", "cascade_lake_sp",
        518, 439, False, "its loops differ: the least is 87 % of the mean",
    ),
)  # fmt: skip
