//! The how-to that users follow: its commands, and what they must print.

use crate::machine::Machine;

#[test]
fn the_list_of_the_how_to_byte_for_byte() {
    let machine = Machine::new();
    for line in [
        "-A -t 192.168.1.200:80 -s rr",
        "-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g",
        "-a -t 192.168.1.200:80 -r 192.168.1.102:80 -g",
    ] {
        assert_eq!(machine.ok(line), "");
    }
    let expected = [
        "IP Virtual Server version 1.2.1 (size=4096)\n",
        "Prot LocalAddress:Port Scheduler Flags\n",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
        "TCP  192.168.1.200:80 rr\n",
        "  -> 192.168.1.101:80             Route   1      0          0         \n",
        "  -> 192.168.1.102:80             Route   1      0          0         \n",
    ];
    assert_eq!(machine.ok("-L -n"), expected.concat());
}

#[test]
fn a_weight_is_changed_at_run_time() {
    let machine = Machine::new();
    machine.ok("-A -t 192.168.1.200:80 -s wrr");
    machine.ok("-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g -w 3");
    machine.ok("-e -t 192.168.1.200:80 -r 192.168.1.101:80 -g -w 0");
    let expected = "\
-A -t 192.168.1.200:80 -s wrr
-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g -w 0
";
    assert_eq!(machine.ok("-S -n"), expected);
}
