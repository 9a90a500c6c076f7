"""Run one test of one adapter; prints one JSON object. See README.md."""

import argparse, asyncio, gc, importlib, json, os, resource, statistics, sys, tempfile, threading, time, logging, shutil

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
logging.disable(logging.CRITICAL)


def rss():
    with open("/proc/self/status") as f:
        for l in f:
            if l.startswith("VmRSS"):
                return int(l.split()[1])


def summary(xs):
    return {"median": statistics.median(xs), "min": min(xs), "max": max(xs), "n": len(xs)}


async def t_loop(A, runs, N=50):
    await A.loop(5)
    xs = []
    for _ in range(runs):
        gc.collect()
        t = time.perf_counter()
        await A.loop(N)
        xs.append((time.perf_counter() - t) / (N + 1) * 1e6)
    return {"us_per_request": summary(xs)}


async def t_plain(A, runs, N=40):
    await A.plain()
    xs = []
    for _ in range(runs):
        gc.collect()
        t = time.perf_counter()
        for _ in range(N):
            r = await A.plain()
            assert r == "done"
        xs.append((time.perf_counter() - t) / N * 1e6)
    return {"us_per_run": summary(xs)}


async def t_stream(A, runs, N=10000):
    if A.stream is None:
        return {"us_per_delta": None}
    assert await A.stream(100) == 100
    xs = []
    for _ in range(runs):
        gc.collect()
        t = time.perf_counter()
        k = await A.stream(N)
        xs.append((time.perf_counter() - t) / N * 1e6)
        assert k == N, k
    return {"us_per_delta": summary(xs)}


async def t_growth(A, runs, N=505):
    N = int(os.environ.get("BENCH_GROWTH_N", N))
    pts = {p: [] for p in (10, 100, 300, 500) if p + 5 <= N}
    tot = []
    for _ in range(runs):
        ts = []
        gc.collect()
        t = time.perf_counter()
        await A.loop(N, lambda i: ts.append(time.perf_counter()))
        tot.append(time.perf_counter() - t)
        d = [b - a for a, b in zip(ts, ts[1:])]
        for p in pts:
            pts[p].append(statistics.median(d[p - 5 : p + 5]) * 1e6)
    r = {f"turn{p}_us": summary(x) for p, x in pts.items()}
    r["total_s"] = summary(tot)
    r["n"] = N
    last = max(pts)
    r[f"ratio_{last}_10"] = r[f"turn{last}_us"]["median"] / r["turn10_us"]["median"]
    return r


async def t_concurrent(A, runs, S=1000, T=10):
    await A.loop(3)
    gc.collect()
    r0 = rss()
    t0 = time.perf_counter()
    peak = {}
    if A.SYNC:
        S = int(os.environ.get("BENCH_THREADS", S))
        bar = threading.Barrier(S, timeout=120)
        threading.stack_size(1 << 20)

        def hook(i):
            if i == 5:
                if bar.wait() == 0:
                    peak["rss"] = rss()
                bar.wait()

        errs = []

        def w():
            try:
                A.run_sync(T, hook)
            except BaseException as e:
                errs.append(repr(e))
                bar.abort()

        th = [threading.Thread(target=w) for _ in range(S)]
        for x in th:
            x.start()
        for x in th:
            x.join()
        assert not errs, errs[:2]
    else:
        n = 0
        ev = asyncio.Event()

        def hook(i):
            nonlocal n
            if i == 5:
                n += 1
                if n == S:
                    peak["rss"] = rss()
                    ev.set()
                return ev.wait()
            return asyncio.sleep(0)

        await asyncio.gather(*[A.loop(T, hook) for _ in range(S)])
    dt = time.perf_counter() - t0
    mx = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "sessions": S,
        "turns": T,
        "wall_s": dt,
        "us_per_request": dt / (S * (T + 1)) * 1e6,
        "rss_before_kb": r0,
        "kb_per_session_at_barrier": (peak["rss"] - r0) / S,
        "kb_per_session_peak": (mx - r0) / S,
        "sync_threads": A.SYNC,
    }


async def t_persist(A, runs):
    if not hasattr(A, "loop_persist"):
        return {"skipped": True}
    out = {}
    for N in map(int, os.environ.get("BENCH_PERSIST_N", "50,400").split(",")):
        xs = []
        size = 0
        for _ in range(3 if N >= 300 else 5):
            d = tempfile.mkdtemp()
            p = os.path.join(d, "s.db")
            t = time.perf_counter()
            await A.loop_persist(N, p)
            xs.append((time.perf_counter() - t) / (N + 1) * 1e6)
            size = sum(os.path.getsize(os.path.join(a, f)) for a, _, fs in os.walk(d) for f in fs)
            shutil.rmtree(d)
        out[f"n{N}_us_per_request"] = summary(xs)
        out[f"n{N}_bytes"] = size
    return out


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--adapter")
    ap.add_argument("--test")
    ap.add_argument("--runs", type=int, default=7)
    a = ap.parse_args()
    A = importlib.import_module("adapters." + a.adapter)
    from importlib.metadata import version

    r = asyncio.run(globals()["t_" + a.test](A, a.runs))
    print(
        "JSON "
        + json.dumps(
            {
                "adapter": a.adapter,
                "name": A.NAME,
                "versions": {d: version(d) for d in A.DISTS},
                "test": a.test,
                "python": sys.version.split()[0],
                **r,
            }
        )
    )
