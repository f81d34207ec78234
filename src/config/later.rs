//! Sections of later versions: refused, never ignored, and still checked for slips.

use super::file::Section;
use super::schema;

pub(super) fn refuse(root: &Section<'_>) {
    let claim_check = root.section("claim_check");
    if claim_check.is_there() {
        claim_check.allow(schema::CLAIM_CHECK);
        root.fault_of_later(
            "claim_check",
            "a claim store",
            "remove [claim_check]; events of any size travel inline, so raise the topics' max.message.bytes",
        );
    }
}
