//! The report: one HTML file that loads nothing and opens anywhere.
//!
//! In: results and their reading. Out: the page of `assets/bench`, with tables as HTML, so that they read without
//! scripts, and the results as JSON, from which Chart.js, embedded, draws the charts. Always: nothing that came from
//! outside (a file's name, an error) is HTML or ends a script.

use std::fmt::Write;

use super::figure::Figure;
use super::results::{LeftOut, Results, State, Told};
use super::table::backlog_of;

const PAGE: &str = include_str!("../../../assets/bench/report.html");
const SCRIPT: &str = include_str!("../../../assets/bench/report.js");
const LIBRARY: &str = include_str!("../../../assets/bench/chart.umd.min.js");

/// The page.
pub fn page(results: &Results, reading: &[String]) -> String {
    let names: Vec<&str> = results.workloads.iter().map(|told| told.name.as_str()).collect();
    let partial = match &results.state {
        State::Complete => String::new(),
        State::Partial(reason) => {
            format!(
                "<p class=\"partial\" id=\"partial\"><strong>Partial results.</strong> {}</p>",
                escaped(reason)
            )
        }
    };
    let read = reading.iter().map(|paragraph| format!("<li>{}</li>", escaped(paragraph))).collect::<String>();
    let workloads: String =
        results.workloads.iter().enumerate().map(|(nth, told)| workload(results, told, nth)).collect();
    let machine: String = results
        .machine
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value)))
        .collect();
    let method: String = Figure::ALL
        .iter()
        .map(|figure| {
            let (name, unit) = (figure.name().trim(), figure.unit().name());
            format!("<tr><td>{}</td><td>{unit}</td><td>{}</td></tr>", escaped(name), escaped(figure.how()))
        })
        .collect();
    let left_out = format!("{}{}", list("left out", &results.left_out), list("failed", &results.failed));
    // A `<` in JSON text can only be in a string, where this means the same: no text can end the script's element.
    let json = results.json(reading).to_string().replace('<', "\\u003c");
    let filled = [
        ("title", escaped(&names.join(", "))),
        ("command", escaped(&results.command)),
        ("partial", partial),
        ("reading", if read.is_empty() { "<li>Nothing was measured.</li>".to_owned() } else { read }),
        ("workloads", workloads),
        ("left_out", if left_out.is_empty() { "<p>Nothing.</p>".to_owned() } else { left_out }),
        ("method", method),
        ("machine", machine),
        ("json", json),
        ("library", LIBRARY.to_owned()),
        ("script", SCRIPT.to_owned()),
    ];
    fill(PAGE, &filled)
}

/// Fills in each name once, left to right: what is filled in is not looked at again.
fn fill(page: &str, values: &[(&str, String)]) -> String {
    let mut out = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, behind) = after.split_once("}}").expect("the page closes what it opens");
        out.push_str(before);
        let value = values.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        out.push_str(value.expect("the page names what there is"));
        rest = behind;
    }
    out.push_str(rest);
    out
}

fn workload(results: &Results, told: &Told, nth: usize) -> String {
    let mut out = String::new();
    let (name, about) = (escaped(&told.name), escaped(&told.about));
    let steady = told
        .steady_changes_per_second
        .map_or_else(String::new, |rate| format!("; steady load of {rate} changes/s"));
    let _ = write!(
        out,
        "<h2>{name}</h2><p>{about}.</p><p class=\"quiet\">{}{steady}.</p>",
        escaped(&backlog_of(told))
    );
    out.push_str("<div class=\"charts\">");
    let has = |figure| {
        results.modes(&told.name).iter().any(|mode| results.median(&told.name, *mode, figure).is_some())
    };
    for (id, figure, title) in [
        ("throughput", Figure::Throughput, "Draining a backlog"),
        ("cpu", Figure::CpuSource, "Processor time, by process"),
        ("latency", Figure::LatencyP50, "From commit to visible, under a steady load"),
        ("lag", Figure::LagPeak, "Lag through a burst, every run"),
    ] {
        if has(figure) {
            let _ = write!(
                out,
                "<figure><figcaption>{title}</figcaption><div class=\"chart\"><canvas id=\"{id}-{nth}\" role=\"img\" aria-label=\"{name}: {title}; the figures are in the table below\"></canvas></div></figure>"
            );
        }
    }
    out.push_str("</div>");
    out.push_str(&table(results, told));
    out
}

fn table(results: &Results, told: &Told) -> String {
    let modes = results.modes(&told.name);
    if modes.is_empty() {
        return "<p>Nothing was measured.</p>".to_owned();
    }
    let mut out = String::from("<h3>All figures</h3><div class=\"table\"><table><thead><tr><th></th>");
    for mode in &modes {
        let _ = write!(out, "<th class=\"number\">{}</th>", mode.name());
    }
    out.push_str("</tr></thead><tbody>");
    for figure in Figure::ALL {
        let spreads: Vec<_> = modes.iter().map(|mode| results.spread(&told.name, *mode, figure)).collect();
        if spreads.iter().all(Option::is_none) {
            continue;
        }
        let _ =
            write!(out, "<tr><td>{} <small>{}</small></td>", escaped(figure.name()), figure.unit().name());
        for spread in spreads {
            let text = |value| figure.unit().text(value);
            let cell = spread.map_or_else(
                || "–".to_owned(),
                |spread| match (text(spread.least), text(spread.most)) {
                    (least, most) if least == most => text(spread.median),
                    (least, most) => format!("{} <small>{least} to {most}</small>", text(spread.median)),
                },
            );
            let _ = write!(out, "<td class=\"number\">{cell}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    out
}

fn list(title: &str, entries: &[LeftOut]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let items: String = entries
        .iter()
        .map(|one| {
            let of = one.workload.as_ref().map_or_else(String::new, |workload| format!(" under {workload}"));
            format!("<li>{}: {}</li>", escaped(&format!("{}{of}", one.what)), escaped(&one.reason))
        })
        .collect();
    format!("<h3>{title}</h3><ul>{items}</ul>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::super::mode::Mode;
    use super::*;

    #[test]
    fn nothing_from_outside_is_html_and_nothing_is_loaded() {
        let mut results = Results::new("walgate bench --workloads '</script><img src=x>.sql'".to_owned());
        results.state = State::Partial("<b>interrupted</b> {{json}}".to_owned());
        results.workloads.push(Told {
            name: "</script><script>alert(1)</script>".to_owned(),
            about: "a & b".to_owned(),
            changes: vec![1],
            transactions: vec![1],
            wal_bytes: vec![1],
            steady_changes_per_second: Some(7),
        });
        results.add("</script><script>alert(1)</script>", Mode::Native, Figure::Throughput, 4.0);
        let page = page(&results, &["1 < 2".to_owned()]);
        assert_eq!(page.matches("<script").count(), 3, "the JSON, the library, ours");
        assert_eq!(page.matches("</script>").count(), 3);
        for part in [
            "&lt;b&gt;interrupted&lt;/b&gt; {{json}}",
            "1 &lt; 2",
            "id=\"partial\"",
            "Chart.js v4.6.1",
            "<td class=\"number\">4</td>",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for loads in ["<link", "src=\"", "@import", "url(", "sourceMappingURL"] {
            assert!(!page.replace(LIBRARY, "").contains(loads), "{loads}");
        }
        assert!(LIBRARY.contains("Released under the MIT License") && !LIBRARY.contains("sourceMappingURL"));
    }
}
