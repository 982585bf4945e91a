//! Figures side by side: ours, KubeEdge's, the budget.

use serde_json::{Value, json};

/// One line of the table.
pub struct Figure {
    /// What is measured.
    pub what: String,
    /// What in.
    pub unit: &'static str,
    /// Each time that it was measured.
    pub measured: Vec<f64>,
    /// KubeEdge's median, where it was measured.
    pub kubeedge: Option<f64>,
    /// The design's upper bound.
    pub budget: Option<f64>,
}

impl Figure {
    pub fn new(what: impl Into<String>, unit: &'static str, measured: Vec<f64>) -> Figure {
        Figure { what: what.into(), unit, measured, kubeedge: None, budget: None }
    }

    pub fn kubeedge(self, value: f64) -> Figure {
        Figure { kubeedge: Some(value), ..self }
    }

    pub fn budget(self, value: f64) -> Figure {
        Figure { budget: Some(value), ..self }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.measured.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub fn median(&self) -> f64 {
        median(&self.measured)
    }

    /// Whether the median is within the budget, if there is one.
    fn met(&self) -> Option<bool> {
        Some(self.median() <= self.budget?)
    }

    fn row(&self) -> [String; 6] {
        let sorted = self.sorted();
        let spread = match sorted.as_slice() {
            [least, .., most] => format!("{}..{}", short(*least), short(*most)),
            _ => String::new(),
        };
        let number = |value: Option<f64>| value.map(short).unwrap_or_else(|| "-".into());
        [
            format!("{} [{}]", self.what, self.unit),
            short(self.median()),
            format!("{:>3}  {spread}", sorted.len()),
            number(self.kubeedge),
            number(self.budget),
            self.met().map_or("", |met| if met { "met" } else { "MISSED" }).into(),
        ]
    }

    fn json(&self) -> Value {
        let sorted = self.sorted();
        json!({
            "what": self.what, "unit": self.unit, "n": sorted.len(), "min": sorted.first(),
            "median": self.median(), "max": sorted.last(), "kubeedge": self.kubeedge,
            "budget": self.budget, "met": self.met(),
        })
    }
}

/// The middle, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// Three digits that matter, or all before the point.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The table as text.
pub fn draw(figures: &[Figure]) -> String {
    let head = ["", "median", "  n  min..max", "KubeEdge", "budget", ""].map(String::from);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(figures.iter().map(Figure::row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let [what, median, spread, kubeedge, budget, mark] = row;
        let [a, b, c, d, e, _] = widths;
        let line = format!("{what:<a$}  {median:>b$}  {spread:<c$}  {kubeedge:>d$}  {budget:>e$}  {mark}");
        line.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// All of it as JSON.
pub fn json(figures: &[Figure], conditions: Value) -> Value {
    json!({"conditions": conditions, "figures": figures.iter().map(Figure::json).collect::<Vec<_>>()})
}
