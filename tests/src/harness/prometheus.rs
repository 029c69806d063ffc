//! A real Prometheus, and a network of the test's own in which it scrapes.
//!
//! The network is of namespaces: it ends with the processes that are in it, whatever happens.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::invocation::{Invocation, Running};
use super::{Scene, patience};

/// Where Prometheus listens, in the test's own network.
const ADDRESS: &str = "127.0.0.1:9090";

/// A network: a namespace in the middle, from which every machine is reached.
///
/// The test itself stays out of it: rigs find the test through a socket of the machine's own.
pub struct Network {
    middle: Machine,
}

/// A machine of the network: a network namespace with one address.
pub struct Machine {
    /// Its address.
    pub address: String,
    namespace: String,
    keeper: Running,
}

impl Machine {
    fn new(scene: &Scene, address: &str) -> Result<Self> {
        let keeper = scene.program("unshare", &["--net", "sleep", "600"])?.start()?;
        let namespace = format!("/proc/{}/ns/net", keeper.pid());
        let own = fs::read_link("/proc/self/ns/net").context("the own namespace")?;
        patience::until("a namespace of the machine's own", || {
            let its = fs::read_link(&namespace).context("the machine's namespace")?;
            Ok((its != own).then_some(()))
        })?;
        let machine = Self { address: address.to_owned(), namespace, keeper };
        machine.ip(scene, &["link", "set", "lo", "up"])?;
        Ok(machine)
    }

    /// Has a program run on this machine.
    pub fn host(&self, invocation: Invocation) -> Invocation {
        invocation.through("nsenter", &[&format!("--net={}", self.namespace)])
    }

    fn ip(&self, scene: &Scene, args: &[&str]) -> Result<()> {
        self.host(scene.program("ip", args)?).run()?.exits(0).map(drop)
    }

    fn takes(&self, scene: &Scene, device: &str, address: &str) -> Result<()> {
        self.ip(scene, &["addr", "add", &format!("{address}/30"), "dev", device])?;
        self.ip(scene, &["link", "set", device, "up"])
    }

    /// Does something in this machine's network.
    fn inside<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter = || {
            let namespace = fs::File::open(&self.namespace).context("the machine's namespace")?;
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).context("setns")?;
            act()
        };
        // A thread that went there does not come back.
        std::thread::scope(|scope| {
            scope.spawn(enter).join().map_err(|_| anyhow::anyhow!("it panicked"))?
        })
    }
}

impl Network {
    /// One without machines.
    pub fn new(scene: &Scene) -> Result<Self> {
        Ok(Self { middle: Machine::new(scene, "127.0.0.1")? })
    }

    /// Adds a machine, the `number`th, from 1 on.
    pub fn machine(&self, scene: &Scene, number: u8) -> Result<Machine> {
        let machine = Machine::new(scene, &format!("10.77.{number}.2"))?;
        let (near, far) = (format!("near{number}"), format!("far{number}"));
        self.middle.ip(scene, &["link", "add", &near, "type", "veth", "peer", "name", &far])?;
        let pid = machine.keeper.pid().to_string();
        self.middle.ip(scene, &["link", "set", &far, "netns", &pid])?;
        self.middle.takes(scene, &near, &format!("10.77.{number}.1"))?;
        machine.takes(scene, &far, &machine.address)?;
        Ok(machine)
    }

    /// Asks for a path at an address of the network; the answer is status and body.
    pub fn get(&self, address: &str, path: &str) -> Result<(u16, String)> {
        self.middle.inside(|| get(address, path))
    }
}

/// A Prometheus that scrapes each second.
pub struct Prometheus<'a> {
    running: Running,
    network: &'a Network,
}

impl<'a> Prometheus<'a> {
    /// Starts one with these targets of the job `lockwatch` and these rules; what it writes is in
    /// `folder`.
    pub fn start(
        scene: &Scene,
        network: &'a Network,
        folder: &Path,
        targets: &[String],
        rules: &str,
    ) -> Result<Self> {
        fs::create_dir_all(folder).context("a folder for Prometheus")?;
        let config = folder.join("prometheus.yml");
        let rule_file = folder.join("rules.yml");
        // Recording rules of the shipped file have an interval of their own; a test has no half
        // minute.
        fs::write(&rule_file, rules.replace("interval: 30s", "interval: 1s")).context("rules")?;
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{}]\n\
             scrape_configs:\n  - job_name: lockwatch\n    static_configs:\n      \
             - targets: {targets:?}\n",
            rule_file.display()
        );
        fs::write(&config, text).context("the configuration of Prometheus")?;
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.join("tsdb").display()),
            format!("--web.listen-address={ADDRESS}"),
            "--log.level=warn".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let running = network.middle.host(scene.program("prometheus", &args)?).start()?;
        let prometheus = Self { running, network };
        patience::until("Prometheus to be ready", || {
            Ok(prometheus.ask("/-/ready").is_ok_and(|(status, _)| status == 200).then_some(()))
        })?;
        Ok(prometheus)
    }

    /// The values that a query gives now, with their labels.
    pub fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let encoded: String = query
            .bytes()
            .map(|byte| match byte {
                byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                byte => format!("%{byte:02x}"),
            })
            .collect();
        let (_, body) = self.ask(&format!("/api/v1/query?query={encoded}"))?;
        let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        let data = &answer["data"];
        let value = |value: &Value| -> Result<f64> {
            value[1].as_str().context("no value")?.parse().context("a value")
        };
        match data["resultType"].as_str() {
            Some("scalar") => Ok(vec![(Value::Null, value(&data["result"])?)]),
            Some("vector") => data["result"]
                .as_array()
                .context("no result")?
                .iter()
                .map(|sample| Ok((sample["metric"].clone(), value(&sample["value"])?)))
                .collect(),
            other => anyhow::bail!("{query}: a result of type {other:?}"),
        }
    }

    /// Waits until a query gives what fits.
    pub fn wait_for(&self, query: &str, fits: impl Fn(&[f64]) -> bool) -> Result<()> {
        let mut last = Vec::new();
        patience::until(query, || {
            last = self.query(query)?.into_iter().map(|(_, value)| value).collect();
            Ok(fits(&last).then_some(()))
        })
        .with_context(|| format!("it gives {last:?}"))
    }

    fn ask(&self, path: &str) -> Result<(u16, String)> {
        self.network.get(ADDRESS, path)
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.running.signal(Signal::TERM)?;
        self.running.patiently().finish()?.exits(0).map(drop)
    }
}

fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream
        .set_read_timeout(Some(patience::stretched(Duration::from_secs(10))))
        .context("a limit")?;
    // With HTTP 1.0 the body is as it is, and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").context("asking")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("the answer to {path}"))?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without a head")?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse().context("status")?;
    Ok((status, body.to_owned()))
}
