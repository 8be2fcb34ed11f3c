use aya::{EbpfLoader, VerifierLogLevel};
fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap();
    let verbose = args.next().unwrap() == "v";
    let mut l = EbpfLoader::new();
    l.btf(None);
    if verbose { l.verifier_log_level(VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS); }
    let mut e = l.load_file(path).unwrap();
    for name in args {
        let t = std::time::Instant::now();
        let p = e.program_mut(&name).unwrap();
        let r = match p { aya::programs::Program::Xdp(p) => p.load().map(|()| p.info().unwrap()), aya::programs::Program::SchedClassifier(p) => p.load().map(|()| p.info().unwrap()), _ => panic!() };
        match r { Ok(i) => println!("{name}: verified {:?} in {:?} translated {:?}", i.verified_instruction_count(), t.elapsed(), i.size_translated()), Err(e) => println!("{name}: {e}") , }
    }
}
