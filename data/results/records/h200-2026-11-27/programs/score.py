"""Score the calls of the shipped weights and of the new seeds on the fresh test sets."""
import csv, json, sys
from pathlib import Path
import numpy as np
from lensml.metrics import balanced_accuracy, brier, ece, recall_at_fpr, resample_groups, roc_auc, dchi2_at_half_recall

raw, out = Path("raw"), Path(sys.argv[1])
NUM = 200
files = {n: dict(np.load(raw / n)) for n in ("2/calls_baseline.npz", "2/calls_others.npz", "3/calls_baseline.npz", "3/calls_others.npz")}
order = ["shipped", "seed0", "seed1", "seed2", "seed3", "seed4", "seed5"]
SETS = ["baseline_at_100_mmag", "distinct_at_100_mmag", "stellar_at_100_mmag", "planetary_at_100_mmag", "baseline_at_50_mmag", "baseline_at_10_mmag", "planetary_at_10_mmag"]
sig = lambda x: 1 / (1 + np.exp(-np.clip(x.astype(float), -80, 80)))
BASIC = {"auc": roc_auc, "recall_at_fpr_0.01": lambda y, p: recall_at_fpr(y, p, 0.01),
         "balanced_accuracy": balanced_accuracy, "brier": brier}
rows, result = [], {"bootstrap": NUM, "interval": "95 %, resampling pairs", "sets": {}}
for s in SETS:
    kind = "baseline" if s.startswith("baseline") else "others"
    f = files[f"3/calls_{kind}.npz"]
    if f"{s}/logits" not in f:
        f = files[f"2/calls_{kind}.npz"]
    names = [str(n) for n in f["networks"]]
    y, pair, d = f[f"{s}/y"], f[f"{s}/pair"], f[f"{s}/dchi2"]
    g = files[f"2/calls_{kind}.npz"]
    same = {n: float(np.abs(f[f"{s}/logits"][names.index(n)] - g[f"{s}/logits"][i]).max()) for i, n in enumerate(map(str, g["networks"])) if f is not g}
    entry = {"pairs": len(y) // 2, "networks": {}, "largest_difference_of_logits_between_calls": max(same.values(), default=None),
             "fraction_of_binaries_below_dchi2_9": float((d[y == 1] < 9).mean())}
    for when, suffix in (("end", ""), ("half", "_at_half")):
        L = {n: f[f"{s}/logits{suffix}"][i] for i, n in enumerate(names)}
        assert all(np.isfinite(x).all() for x in L.values())
        seeds = [n for n in names if n != "shipped"]
        five = [f"seed{k}" for k in range(1, 6)]
        L["mean_logit_of_seeds_1_to_5"] = np.mean([L[n] for n in five], 0)
        ideal = f[f"{s}/ideal{suffix}"]
        P = {n: sig(x) for n, x in L.items()} | {"ideal": sig(np.nan_to_num(ideal))}
        score = {n: x for n, x in L.items()} | {"ideal": np.nan_to_num(ideal)}
        value = {n: {k: m(y, score[n] if k in ("auc", "recall_at_fpr_0.01") else P[n]) for k, m in BASIC.items()} for n in P}
        for n in P:
            if when == "end":
                value[n]["ece_debiased"] = ece(y, P[n], debiased=True)
                value[n]["dchi2_at_half_recall"] = dchi2_at_half_recall(y, score[n], d)
        boot = {n: {k: [] for k in ("auc", "recall_at_fpr_0.01")} for n in P}
        for idx in resample_groups(pair, NUM, 0):
            yy = y[idx]
            for n in P:
                for k in boot[n]:
                    boot[n][k].append(BASIC[k](yy, score[n][idx]))
        for n in P:
            e = dict(value[n])
            for k in boot[n]:
                b = np.array(boot[n][k])
                e[k + "_interval"] = np.quantile(b, [0.025, 0.975]).tolist()
                if n not in ("shipped", "ideal"):
                    q = b - np.array(boot["shipped"][k])
                    e[k + "_minus_shipped"] = [value[n][k] - value["shipped"][k], *np.quantile(q, [0.025, 0.975]).tolist()]
            entry["networks"].setdefault(n, {})[when] = e
            rows.append({"set": s, "when": when, "network": n, **{k: round(v, 6) for k, v in value[n].items()},
                         "auc_low": round(e["auc_interval"][0], 6), "auc_high": round(e["auc_interval"][1], 6),
                         **({"auc_minus_shipped": round(e["auc_minus_shipped"][0], 6), "low": round(e["auc_minus_shipped"][1], 6), "high": round(e["auc_minus_shipped"][2], 6)} if "auc_minus_shipped" in e else {})})
        a = np.array([value[n]["auc"] for n in seeds]); r = np.array([value[n]["recall_at_fpr_0.01"] for n in seeds])
        entry[f"seeds_{when}"] = {"seeds": seeds, "auc_mean": a.mean(), "auc_sd": a.std(ddof=1), "auc_min": a.min(), "auc_max": a.max(),
                                  "recall_mean": r.mean(), "recall_sd": r.std(ddof=1)}
        print(s, when, "ideal %.4f shipped %.4f" % (value["ideal"]["auc"], value["shipped"]["auc"]), "seeds", a.round(4), "mean %.4f sd %.4f" % (a.mean(), a.std(ddof=1)),
              "5mean %.4f" % value["mean_logit_of_seeds_1_to_5"]["auc"], "| recall1%% ideal %.4f shipped %.4f seeds %.4f sd %.4f mean5 %.4f" % (value["ideal"]["recall_at_fpr_0.01"], value["shipped"]["recall_at_fpr_0.01"], r.mean(), r.std(ddof=1), value["mean_logit_of_seeds_1_to_5"]["recall_at_fpr_0.01"]), same and max(same.values()), flush=True)
    result["sets"][s] = entry
out.mkdir(parents=True, exist_ok=True)
(out / "test_sets.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
with (out / "test_sets.csv").open("w", newline="") as file:
    fields = ["set", "when", "network", "auc", "auc_low", "auc_high", "auc_minus_shipped", "low", "high", "recall_at_fpr_0.01", "balanced_accuracy", "brier", "ece_debiased", "dchi2_at_half_recall"]
    w = csv.DictWriter(file, fields); w.writeheader(); w.writerows(rows)
