//! Where scrapes are answered, as the configuration writes it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// The longest path of a unix socket (`sun_path` of `unix(7)`, with its NUL).
const SOCKET_PATH: usize = 107;

/// Where the metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket, an absolute path.
    Unix(PathBuf),
    /// Nowhere.
    Off,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            if !path.is_absolute() || path.file_name().is_none() {
                return Err(format!("{text:?}: the path of a socket is absolute"));
            }
            if path.as_os_str().len() > SOCKET_PATH {
                return Err(format!("{text:?}: the path of a socket has at most 107 bytes"));
            }
            return Ok(Self::Unix(path.to_owned()));
        }
        match text.parse() {
            Ok(SocketAddr::V4(address)) if address.port() == 0 => Err("port 0".into()),
            Ok(SocketAddr::V6(address)) if address.port() == 0 => Err("port 0".into()),
            Ok(address) => Ok(Self::Tcp(address)),
            Err(_) => Err("no address with a port".into()),
        }
        .map_err(|why: String| {
            format!(
                "{text:?}: {why}; write it as `127.0.0.1:9965`, `[::]:9965`, `unix:/run/x.sock` or \
                 `off`"
            )
        })
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(|error: String| de::Error::custom(format!("metrics_listen: {error}")))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Off => f.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_sockets_and_off_are_understood_and_written_the_same() {
        for text in
            ["127.0.0.1:9965", "0.0.0.0:9965", "[::1]:80", "unix:/run/lockwatch/m.sock", "off"]
        {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_listened_at_is_refused() {
        for text in ["", "everywhere", "127.0.0.1", "127.0.0.1:0", "[::]:0", "unix:", "unix:m"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        assert!(format!("unix:/{}", "x".repeat(107)).parse::<Listen>().is_err());
        assert!("unix:/".parse::<Listen>().is_err());
    }
}
