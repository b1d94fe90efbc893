//! `doctor` on this machine.

use super::output;

#[test]
fn the_doctor_says_what_it_saw_and_its_status_agrees_with_what_it_found() {
    let (code, text, stderr) = output(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let findings = json["findings"].as_array().unwrap();
    let spoils = findings.iter().any(|finding| finding["severity"] == "spoils");
    assert_eq!((code, stderr.as_str()), (i32::from(spoils), ""), "{text}");
    assert!(
        findings.iter().all(|finding| finding["fix"].as_str().is_some_and(|fix| fix.len() > 5)),
        "{text}"
    );
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(json["host"]["kernel"], kernel.trim());
    let rmem_max: u64 =
        std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    assert_eq!(json["host"]["rmem_max"], rmem_max);
    assert_eq!(findings.iter().any(|finding| finding["name"] == "rmem_max"), rmem_max < 8 << 20, "{text}");

    let (code, text, _) = output(&["doctor"]);
    assert!((0..=1).contains(&code), "{code}");
    assert!(text.contains("spoil") && (code == 1) != text.starts_with("nothing here"), "{text}");
}
