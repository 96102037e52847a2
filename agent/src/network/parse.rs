//! Addresses as the protocol writes them.

use std::net::IpAddr;

use crate::error::{Error, Kind, Result};

fn wrong(what: &str, text: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("{text:?} is no {what}"))
}

pub(super) fn address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| wrong("IP address", text))
}

/// An empty text is no address.
pub(super) fn optional(text: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() { Ok(None) } else { address(text).map(Some) }
}

/// The number of leading one bits; kata writes it, or for IPv4 the mask itself.
pub(super) fn mask(text: &str, of: IpAddr) -> Result<u8> {
    let most = if of.is_ipv4() { 32 } else { 128 };
    let bits = match text.parse::<std::net::Ipv4Addr>() {
        Ok(mask) if of.is_ipv4() && mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() >= 32 => {
            u8::try_from(mask.to_bits().leading_ones()).ok()
        }
        _ => text.parse().ok(),
    };
    bits.filter(|bits| *bits <= most).ok_or_else(|| wrong(&format!("network mask of {of}"), text))
}

/// `address/bits`, or an address alone for all its bits.
pub(super) fn prefix(text: &str) -> Result<(IpAddr, u8)> {
    match text.split_once('/') {
        Some((ip, bits)) => {
            let ip = address(ip)?;
            Ok((ip, mask(bits, ip)?))
        }
        None => address(text).map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 })),
    }
}

/// Six bytes in hexadecimal, with colons between them.
pub(super) fn mac(text: &str) -> Result<Vec<u8>> {
    let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let byte = |part: &str| Some(part).filter(is_byte).and_then(|part| u8::from_str_radix(part, 16).ok());
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes.filter(|bytes| bytes.len() == 6).ok_or_else(|| wrong("MAC address", text))
}

pub(super) fn show_mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_bits_or_dotted() {
        let v4 = address("10.0.0.1").unwrap();
        let v6 = address("fd00::1").unwrap();
        assert_eq!(
            [mask("24", v4).unwrap(), mask("255.255.254.0", v4).unwrap(), mask("0.0.0.0", v4).unwrap()],
            [24, 23, 0]
        );
        assert_eq!(mask("64", v6).unwrap(), 64);
        for (text, of) in
            [("33", v4), ("255.0.255.0", v4), ("129", v6), ("255.0.0.0", v6), ("", v4), ("-1", v4)]
        {
            let error = mask(text, of).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn prefixes_and_macs_are_checked() {
        assert_eq!(prefix("10.1.0.0/16").unwrap(), (address("10.1.0.0").unwrap(), 16));
        assert_eq!(prefix("fd00::5").unwrap().1, 128);
        assert!(prefix("10.1.0.0/").is_err() && prefix("/8").is_err());
        assert_eq!(mac("02:a8:1e:00:00:fF").unwrap(), [2, 0xa8, 0x1e, 0, 0, 0xff]);
        assert!(mac("02:a8:1e:00:00").is_err() && mac("02:a8:1e:00:00:+1").is_err() && mac("").is_err());
        assert_eq!(show_mac(&[2, 0xa8, 0]), "02:a8:00");
    }
}
