//! The picks that ipvs.md §2.2 and §2.3 quote.

use rlvs_control::ring::Kind;

use crate::director::Director;

/// Makes a service whose destinations 1, 2, 3 … are added in this order.
fn service(kind: Kind, weights: &[u32]) -> Director {
    let mut service = Director::new(kind, 0);
    for (id, &weight) in (1..).zip(weights) {
        service.add(id, weight);
    }
    service
}

#[track_caller]
fn check(service: &mut Director, picks: &[u32]) {
    assert_eq!(service.picks(picks.len()), picks);
}

#[test]
fn rr_goes_on_over_removal_addition_and_quiescence() {
    let mut service = service(Kind::Rr, &[1, 1, 1]);
    check(&mut service, &[3, 2, 1, 3, 2, 1, 3]);
    service.remove(2);
    check(&mut service, &[1, 3, 1, 3]);
    service.add(2, 1);
    check(&mut service, &[1, 2, 3, 1, 2, 3]);
    service.edit(3, 0);
    check(&mut service, &[1, 2, 1, 2, 1]);
}

#[test]
fn rr_goes_on_before_a_removed_destination() {
    let mut service = service(Kind::Rr, &[1, 1, 1]);
    check(&mut service, &[3, 2]);
    service.remove(2);
    check(&mut service, &[1, 3, 1]);
    service.remove(1);
    check(&mut service, &[3]);
    service.remove(3);
    check(&mut service, &[]);
    assert_eq!(service.pick(), None);
    service.add(3, 1);
    check(&mut service, &[3, 3]);
}

#[test]
fn wrr_starts_where_the_order_of_addition_left_it() {
    check(&mut service(Kind::Wrr, &[3, 2, 1]), &[3, 2, 1, 1, 2, 1, 3, 2, 1, 1, 2, 1, 3]);
    check(&mut service(Kind::Wrr, &[1, 2, 3]), &[3, 2, 1, 3, 3, 2, 3, 2, 1, 3, 3, 2, 3]);
    check(&mut service(Kind::Wrr, &[4, 2, 2]), &[3, 2, 1, 1, 3, 2, 1, 1, 3]);
    check(&mut service(Kind::Wrr, &[5, 5, 5]), &[3, 2, 1, 3, 2, 1]);
    check(&mut service(Kind::Wrr, &[3, 0, 1]), &[3, 1, 1, 1, 3, 1, 1, 1]);
}

#[test]
fn wrr_restarts_its_walk_at_an_edit() {
    let mut service = service(Kind::Wrr, &[3, 2, 1]);
    check(&mut service, &[3, 2]);
    service.edit(1, 1);
    check(&mut service, &[3, 2, 1, 2, 3, 2, 1, 2]);
}

#[test]
fn wrr_restarts_its_walk_at_an_addition() {
    let mut service = service(Kind::Wrr, &[2, 1]);
    check(&mut service, &[2, 1, 1, 2]);
    service.add(3, 3);
    check(&mut service, &[3, 2, 1, 3, 3, 1, 3, 2, 1, 3, 3, 1]);
}

#[test]
fn a_change_of_scheduler_restarts_at_the_head() {
    let mut service = service(Kind::Rr, &[3, 1]);
    check(&mut service, &[2]);
    service.change_scheduler(Kind::Wrr);
    check(&mut service, &[1, 1, 2]);
    service.change_scheduler(Kind::Rr);
    check(&mut service, &[2, 1, 2]);
}

#[test]
fn nothing_is_picked_without_weight() {
    for kind in [Kind::Rr, Kind::Wrr] {
        let mut service = service(kind, &[0, 0]);
        assert_eq!(service.pick(), None);
        assert_eq!(service.position, 0);
        service.edit(1, 7);
        check(&mut service, &[1, 1]);
        service.edit(1, 0);
        assert!(service.ring.elements.is_empty());
    }
}
