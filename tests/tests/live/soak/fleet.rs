//! A scrape loop, a scan loop and a load of locks together: not one scrape is missed, nothing is
//! wrong in the log, and the daemon's memory stays what it is.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::memory::Curve;
use lockwatch_tests::harness::prometheus::{Network, Prometheus};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};

use super::tree::ensure_a_log_without;
use super::{LONG, Workers, rounds, tell};
use crate::fleet;

pub(crate) const TESTS: &[Test] =
    &[once!(no_scrape_is_missed_beside_scans_and_load).needs(fleet::NEEDS).within(LONG)];

/// Seconds of the short form.
const USUAL: u32 = 6;
/// Ordinary sequences of locks at a time.
const SEQUENCES: u32 = 1_000;
/// Between two scrapes of the loop, beside Prometheus' one a second.
const PAUSE: Duration = Duration::from_millis(100);
/// Descriptors that may be added late, once each: one to tell a service manager that does not listen, as
/// the test's does not, and what a search needs.
const DESCRIPTORS: usize = 4;
/// Prometheus' own limit in this test, which no scrape may reach.
const LATE: Duration = Duration::from_secs(1);

fn no_scrape_is_missed_beside_scans_and_load(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let network = Network::new(scene)?;
    let machine = network.machine(scene, 1)?;
    let config = "gc_interval = \"500ms\"\ngrace = \"50ms\"";
    let daemon = fleet::daemon(scene, &house, &machine, "a", config)?;
    let target = format!("{}:9965", machine.address);
    let prometheus = Prometheus::start(
        scene,
        &network,
        &house.path("prometheus"),
        std::slice::from_ref(&target),
        fleet::RULES,
    )?;
    prometheus.wait_for("up{job=\"lockwatch\"}", |values| values == [1.0])?;
    scene.new_folder("crowd")?;
    scene.play("start crowd")?;

    let seconds = Duration::from_secs(rounds(USUAL)?.into());
    let begun = Instant::now();
    let mut beside = Beside::default();
    let curve = beside.play(scene, &network, &target, daemon.pid(), seconds)?;

    let seconds = begun.elapsed().as_secs();
    let counted = prometheus.query(&format!("count_over_time(up[{seconds}s])"))?;
    let missed = prometheus.query(&format!("min_over_time(up[{seconds}s])"))?;
    let slowest =
        prometheus.query(&format!("max_over_time(scrape_duration_seconds[{seconds}s])"))?;
    let one = |values: &[(serde_json::Value, f64)], what: &str| {
        values.first().map(|(_, value)| *value).with_context(|| what.to_owned())
    };
    let (counted, lowest) = (one(&counted, "no scrapes")?, one(&missed, "no scrapes")?);
    let slowest = one(&slowest, "no durations")?;
    let mut times = std::mem::take(&mut beside.times);
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(Duration::MAX);
    tell(&format!(
        "Prometheus: {counted} scrapes in {seconds} s, none missed, the slowest {:.1} ms; the loop: \
         {} scrapes, median {:.2} ms, 95 of 100 within {:.2} ms, the slowest {:.1} ms",
        slowest * 1e3,
        times.len(),
        at(50).as_secs_f64() * 1e3,
        at(95).as_secs_f64() * 1e3,
        times.last().copied().unwrap_or_default().as_secs_f64() * 1e3,
    ))?;
    tell(&format!("beside {} scans and {} ordinary sequences", beside.scans, beside.sequences))?;
    tell(&format!("resident, by quarters: {curve:?}"))?;
    same!("the lowest `up`", lowest, 1.0);
    ensure!(counted >= (seconds as f64) * 0.9, "Prometheus scraped {counted} times in {seconds} s");
    ensure!(beside.scans > 0 && beside.sequences > 0, "nothing happened beside the scrapes");
    curve.ensure_it_is_flat(DESCRIPTORS)?;
    prometheus.stop()?;
    let log = fs::read_to_string(daemon.log()).context("the daemon's events")?;
    let lost = log.lines().find(|line| line.contains("\"kind\":\"lost\""));
    ensure!(lost.is_none(), "records were lost: {lost:?}");
    ensure_a_log_without(&["ERROR", "WARN"], &daemon.stop()?)
}

/// What goes on beside Prometheus.
#[derive(Default)]
struct Beside {
    times: Vec<Duration>,
    scans: u64,
    sequences: u64,
    seed: u32,
}

impl Beside {
    fn play(
        &mut self,
        scene: &mut Scene,
        network: &Network,
        target: &str,
        daemon: i32,
        lasting: Duration,
    ) -> Result<Curve> {
        let (stop, scans, locks) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let failed = Mutex::new(None);
        let until_told = |act: &mut dyn FnMut() -> Result<()>| {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = act() {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    return;
                }
            }
        };
        let scan = scene.lockwatch(&["scan", "--json"])?;
        let times = Mutex::new(std::mem::take(&mut self.times));
        let curve = std::thread::scope(|scope| -> Result<Curve> {
            let curve = scope.spawn(|| Curve::of(daemon, &locks, &stop));
            scope.spawn(|| {
                until_told(&mut || {
                    let begun = Instant::now();
                    let (status, text) = network.get(target, "/metrics")?;
                    let took = begun.elapsed();
                    times.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                    same!("status", status, 200);
                    let ends = "lockwatch_heartbeat_timestamp_seconds ";
                    ensure!(text.contains(ends), "half of an answer: {text}");
                    ensure!(took < patience::stretched(LATE), "a scrape took {took:?}");
                    locks.store(counted(&text), Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                    Ok(())
                });
            });
            scope.spawn(|| {
                until_told(&mut || {
                    let run = scan.clone().run()?;
                    ensure!(matches!(run.code(), Some(0 | 1)), "a scan: {:?}", run.complaints());
                    scans.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                });
            });
            let begun = Instant::now();
            let mut load = Ok(());
            while load.is_ok() && begun.elapsed() < lasting {
                load = self.load(scene);
            }
            stop.store(true, Ordering::Relaxed);
            let curve = curve.join().map_err(|_| anyhow!("who looked at the memory panicked"))?;
            load.and(curve)
        })?;
        self.times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.scans += scans.into_inner();
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(curve), Err)
    }

    /// Locks that are taken and end in every ordinary way.
    fn load(&mut self, scene: &mut Scene) -> Result<()> {
        self.seed += 2;
        let workers = Workers::start(scene, "ordinary", 2, SEQUENCES, self.seed)?;
        while workers.are_at_work() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.sequences += workers.done(scene)?;
        scene.play("crowd: dismiss")
    }
}

/// How many locks there are, by what was scraped.
fn counted(text: &str) -> u64 {
    let samples = text.lines().filter(|line| line.starts_with("lockwatch_locks{"));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}
