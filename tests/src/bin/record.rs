//! Writes filetests for instruction forms that have none, with this processor's results: `record [seed]`. To be reviewed.

#[cfg(target_arch = "x86_64")]
fn main() {
    use rhea_tests::filetest::{check_text, x86_texts};
    use rhea_tests::host::record::{record, subjects_of};
    let seed = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1);
    let have = x86_texts().iter().flat_map(|t| subjects_of(t)).collect();
    match record(seed, &have, &check_text) {
        Ok((files, problems)) => {
            let dir = rhea_tests::workspace::root().join("tests/filetests/x86/host");
            std::fs::create_dir_all(&dir).expect("the folder can be made");
            for (name, text) in &files {
                // What is there stays.
                let new = (0..).map(|n| if n == 0 { name.clone() } else { format!("more{n}_{name}") }).map(|n| dir.join(n));
                let path = new.take(1000).find(|p| !p.exists()).expect("a name that is not taken");
                std::fs::write(path, text).expect("the file can be written");
            }
            problems.iter().for_each(|p| eprintln!("{p}"));
            eprintln!("{} files, {} forms without", files.len(), problems.len());
        }
        Err(why) => eprintln!("record: {why}"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("record: the results come from an x86-64 host");
}
