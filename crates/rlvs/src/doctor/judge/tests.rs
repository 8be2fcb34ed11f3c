use super::*;
use crate::doctor::facts::Interface;

/// Returns the names of the checks that find something.
#[track_caller]
fn found(change: impl FnOnce(&mut Facts)) -> Vec<&'static str> {
    let mut facts = Facts {
        kernel: "6.1.0-44-amd64".to_owned(),
        jit: Some(true),
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            mtu: 1500,
            mode: Some(Mode::Native),
            serves: true,
            ..Interface::default()
        }],
        sweeps: Some(true),
        ..Facts::default()
    };
    assert_eq!(judge(&facts), [], "what is healthy has no findings");
    change(&mut facts);
    judge(&facts).into_iter().map(|finding| finding.check).collect()
}

#[test]
fn an_old_or_slow_kernel_is_told() {
    for (release, is_old) in
        [("5.15.0", true), ("6.0.19-rc1", true), ("6.1.0", false), ("10.0", false), ("", false)]
    {
        let expected = if is_old { vec!["kernel"] } else { vec![] };
        assert_eq!(found(|facts| facts.kernel = release.to_owned()), expected, "{release}");
    }
    assert_eq!(found(|facts| facts.jit = Some(false)), ["kernel"]);
}

#[test]
fn a_sweep_that_stands_still_is_told() {
    assert_eq!(found(|facts| facts.sweeps = Some(false)), ["sweep"]);
}

#[test]
fn unfinished_checksums_matter_to_xdp_only() {
    let sender = || [std::net::Ipv4Addr::LOCALHOST.into()].into();
    assert_eq!(found(|facts| facts.interfaces[0].unfinished = sender()), ["checksum"]);
    let by_tc = found(|facts| {
        facts.interfaces[0].unfinished = sender();
        facts.interfaces[0].mode = Some(Mode::Tc);
    });
    assert_eq!(by_tc, [""; 0]);
}

#[test]
fn every_reason_that_must_not_happen_has_a_remedy() {
    for reason in Reason::ALL {
        let told = found(|facts| facts.growth = vec![(reason, 1)]);
        assert_eq!(told == ["reason"], bad(reason).is_some(), "{reason:?}");
    }
    assert_eq!(found(|facts| facts.growth = vec![(Reason::TableFull, 0)]), [""; 0]);
}
