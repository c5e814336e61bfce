//! Values of each type that are hard, and random ones that collide often.

/// A small generator whose whole state is its seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).expect("a usize fits")).expect("it is below a usize")
    }

    pub(super) fn pick<'t, T: ?Sized>(&mut self, of: &[&'t T]) -> &'t T {
        of[self.below(of.len())]
    }

    fn text(&mut self) -> String {
        let pieces = [
            "a", "b", "A", "Z", "ab", "%", "_", "\\", "'", "\"", ",", " ", "  ", "é", "ß", "İ", "日本", "😀", "\n", "\t", "{", "0", "1",
            "-", "x",
        ];
        (0..self.below(8)).map(|_| self.pick(&pieces)).collect()
    }

    fn integer(&mut self, bits: u32) -> i64 {
        let wide = self.next().cast_signed();
        // All magnitudes are as likely.
        wide >> (64 - bits + u32::try_from(self.below(usize::try_from(bits).expect("it is small"))).expect("it is small"))
    }

    fn digits(&mut self, most: usize) -> String {
        (0..=self.below(most)).map(|_| self.pick(&["0", "1", "5", "9", "4"])).collect()
    }

    fn numeric(&mut self) -> String {
        let sign = self.pick(&["", "-"]);
        let whole = self.digits(self.0 as usize % 12 + 1);
        if self.below(3) == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{}", self.digits(9)) }
    }

    fn json(&mut self, depth: usize) -> String {
        match self.below(if depth == 0 { 6 } else { 9 }) {
            0 => "null".to_owned(),
            1 => "true".to_owned(),
            2 => self
                .numeric()
                .trim_start_matches("-0")
                .trim_start_matches('0')
                .trim_start_matches('.')
                .parse::<f64>()
                .map_or("7".into(), |n| n.to_string()),
            3..6 => quoted(&self.text()),
            6 | 7 => {
                let members: Vec<String> = (0..self.below(4))
                    .map(|_| format!("{}: {}", quoted(self.pick(&["a", "b", "é", "a\"b", "k\\", "", "0", "ab\n"])), self.json(depth - 1)))
                    .collect();
                format!("{{{}}}", members.join(","))
            }
            _ => format!("[{}]", (0..self.below(4)).map(|_| self.json(depth - 1)).collect::<Vec<_>>().join(" , ")),
        }
    }

    fn day(&mut self) -> String {
        format!("{:04}-{:02}-{:02}", 1 + self.below(12_000), 1 + self.below(12), 1 + self.below(28))
    }

    fn moment(&mut self) -> String {
        let era = self.pick(&["", "", " BC"]);
        let day = if era.is_empty() {
            self.day()
        } else {
            format!("{:04}-{:02}-{:02}", 1 + self.below(4700), 1 + self.below(12), 1 + self.below(28))
        };
        format!("{day} {:02}:{:02}:{:02}.{:06}{era}", self.below(24), self.below(60), self.below(60), self.below(1_000_000))
    }

    /// A value of the type, as its input function reads it.
    pub(super) fn value(&mut self, of: &str) -> String {
        match of {
            "boolean" => self.pick(&["t", "f"]).to_owned(),
            "smallint" => self.integer(16).to_string(),
            "integer" => self.integer(32).to_string(),
            "bigint" => self.integer(64).to_string(),
            "oid" => (self.integer(32) & 0xFFFF_FFFF).to_string(),
            "numeric" => self.numeric(),
            "real" => format!("{:e}", f32::from_bits(u32::try_from(self.next() & 0xFFFF_FFFF).expect("it is masked"))),
            "double precision" => format!("{:e}", f64::from_bits(self.next())),
            "uuid" => format!("{:016x}{:016x}", self.next() & 0xFF, self.next() >> 56),
            "bytea" => format!("\\x{}", (0..self.below(4)).map(|_| format!("{:02x}", self.below(256))).collect::<String>()),
            "\"char\"" => self.pick(&["a", "b", "", "\\"]).to_owned(),
            "date" => self.day(),
            "timestamp without time zone" | "timestamp with time zone" => self.moment(),
            "jsonb" | "json" => self.json(3),
            "label" => self.pick(&["a", "b", "B c", "é"]).to_owned(),
            "text[]" => format!("{{{}}}", (0..self.below(4)).map(|_| quoted(&self.text().replace('\n', ""))).collect::<Vec<_>>().join(",")),
            "integer[]" => format!("{{{}}}", (0..self.below(4)).map(|_| self.integer(32).to_string()).collect::<Vec<_>>().join(",")),
            _ => self.text(),
        }
    }
}

/// A JSON string, or an element of an array.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t"))
}

/// Values at the edges of each type, as its input function reads them; the last ones are for all other types.
static EDGES: &[(&str, &[&str])] = &[
    ("boolean", &["t", "f"]),
    ("smallint", &["-32768", "32767", "-1", "0", "1", "2", "7", "-7"]),
    ("integer", &["-2147483648", "2147483647", "-2147483647", "-32769", "32768", "-1", "0", "1", "2", "3", "-3", "100"]),
    (
        "bigint",
        &[
            "-9223372036854775808",
            "9223372036854775807",
            "-9223372036854775807",
            "2147483648",
            "-2147483649",
            "4294967295",
            "4294967296",
            "32768",
            "-32769",
            "-1",
            "0",
            "1",
            "2",
            "-7",
            "3037000500",
        ],
    ),
    ("oid", &["0", "1", "16384", "2147483648", "4294967295"]),
    (
        "numeric",
        &[
            "0",
            "0.00",
            "-0.0",
            "1",
            "1.0",
            "1.00",
            "-1",
            "-1.50",
            "0.5",
            "-0.5",
            "1.5",
            "2.5",
            "0.4999999999",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1e400",
            "1e-400",
            "123456789012345678901234567890.0001",
            "32767.4",
            "32767.5",
            "-32768.5",
            "-32768.4",
            "2147483647.5",
            "2147483647.49",
            "-2147483648.5",
            "9223372036854775807.4",
            "9223372036854775807.5",
            "-9223372036854775808.5",
            "10",
            "100.10",
            "99.9",
        ],
    ),
    (
        "real",
        &[
            "0",
            "-0",
            "1",
            "-1",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e38",
            "1.17549435e-38",
            "0.1",
            "1e-45",
            "16777216",
            "1e6",
            "999999",
            "0.0001",
            "1e-5",
        ],
    ),
    (
        "double precision",
        &[
            "0",
            "-0",
            "1",
            "-1",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e308",
            "2.2250738585072014e-308",
            "0.1",
            "0.10000000149011612",
            "5e-324",
            "1e15",
            "999999999999999",
            "1e14",
            "123456789012345680",
            "0.0001",
            "0.00001",
            "9007199254740993",
        ],
    ),
    ("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    ("bytea", &["\\x", "\\x00", "\\xff", "\\x00ff", "\\x0a", "\\xa0"]),
    ("\"char\"", &["", "a", "A", "\\", " ", "0"]),
    (
        "date",
        &[
            "infinity",
            "-infinity",
            "2000-01-01",
            "4713-01-01 BC",
            "0001-01-01 BC",
            "0001-12-31 BC",
            "0001-01-01",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "294276-12-31",
            "294277-01-01",
            "2024-02-29",
            "1900-02-28",
            "1900-03-01",
        ],
    ),
    (
        "timestamp",
        &[
            "infinity",
            "-infinity",
            "2000-01-01 00:00:00",
            "4713-01-01 00:00:00 BC",
            "4714-11-24 00:00:00 BC",
            "0001-12-31 23:59:59.999999 BC",
            "0001-01-01",
            "294276-12-31 23:59:59.999999",
            "2024-02-29 12:00:00.1",
            "2024-02-29 12:00:00.10",
            "2024-02-29 12:00:00.000001",
            "1999-12-31 23:59:59.9",
            "9999-12-31",
            "10000-01-01",
            "1970-01-01",
        ],
    ),
    (
        "jsonb",
        &[
            "null",
            "true",
            "false",
            "0",
            "-0",
            "1.10",
            "1e400",
            "-1.5e-10",
            "\"\"",
            "\"a\"",
            "\"a\\\"b\\\\\\n\\t\\u0001\\u007f\"",
            "\"\\u00e9\\ud83d\\ude00\"",
            "[]",
            "{}",
            "[1, 1.10, 1e400]",
            "[null]",
            "[[], {}, [[1, 2], 3], \"x,]\"]",
            "[\"a\", \"b\", \"a\"]",
            "{\"a\": 1.10, \"b\": null, \"a\": 2.0}",
            "{\"a\": {\"a\": [1, {\"b\": \"}\"}]}, \"é\": \"x\", \"\": 0, \"a\\\"b\": \"c\\\\\", \"k\\\\\": true, \"0\": \"zero\"}",
            "{\"bbb\": 1, \"aa\": 2, \"c\": 3}",
            "{\"a\": \"null\"}",
            "{\"a\": false, \"b\": [true]}",
            "[-1, -0.50]",
            "{\"a\":\"\\b\\f\\r/\"}",
        ],
    ),
    (
        "json",
        &[
            " [1 , 2.50, \"a\\u00e9\\/\" , null,{\"a\" :\t[ 1 ]} ] ",
            "[]",
            "{}",
            "1",
            "\"x\"",
            "null",
            "[\"\\ud83d\\ude00\"]",
            "[\"\\u0000\"]",
            "[\"\\ud83d\"]",
            "[1, {\"\\udc00\": 2}]",
            "[[1,2],[3]]",
            "[\n]",
            "[true,false,1e5,-0]",
            "[\"\\ud83dx\"]",
            "[\"\\ud83d\\u0041\"]",
        ],
    ),
    ("label", &["a", "b", "B c", "é"]),
    (
        "text[]",
        &[
            "{}",
            "{a}",
            "{NULL}",
            "{\"NULL\",null}",
            "{\"\",\" \",\"a,b\",\"{x}\",\"q\\\"\\\\\"}",
            "{{a,b},{c,NULL}}",
            "[2:3]={x,y}",
            "{é,日本,😀}",
            "[0:0][1:2]={{a,b}}",
        ],
    ),
    ("integer[]", &["{}", "{1}", "{NULL}", "{-2147483648,2147483647,NULL,0}", "{{1,2},{3,4}}", "[5:6]={1,1}", "{1,2,3}"]),
    ("name", &["", "a", "A", " ", "é", "a\\b", "x''", "0123456789012345678901234567890123456789012345678901234567890123456789"]),
    (
        "",
        &[
            "",
            " ",
            "  a ",
            "a",
            "A",
            "abc",
            "ABC",
            "aab",
            "abab",
            "%",
            "_",
            "%a",
            "a%",
            "%a%b%",
            "a_c",
            "\\",
            "\\\\",
            "a\\",
            "\\%",
            "%\\",
            "\\a",
            "é",
            "É",
            "_é",
            "%é%",
            "日本語",
            "😀x",
            "ß",
            "İı",
            "'",
            "\"",
            "t",
            "true",
            "1",
            "-1",
            "\n",
            "a\tb",
            "a,b,,c",
            ",",
            "xx",
            "\u{1}",
            "\u{7f}",
            "e\u{301}",
            "zé",
        ],
    ),
];

/// Values at the edges of the type.
pub(super) fn boundaries(of: &str) -> Vec<String> {
    // The two print alike; `text` alone also has a long value.
    let name = if of.starts_with("timestamp") { "timestamp" } else { of };
    let found = EDGES.iter().find(|(known, _)| *known == name);
    let (_, values) = found.or(EDGES.last()).expect("the table is not empty");
    let long = found.is_none().then(|| "lé".repeat(2_000));
    values.iter().map(|&text| text.to_owned()).chain(long).collect()
}

/// Texts that casts to other types read, or nearly.
pub(super) static CASTABLE: &[&str] = &[
    "0",
    "1",
    " 1",
    "1 ",
    "\t1\n",
    "+1",
    "-1",
    "--1",
    "+-1",
    "",
    " ",
    "+",
    "-",
    "1.0",
    "1e3",
    "0x1F",
    "0X1f",
    "-0x10",
    "0o17",
    "0b101",
    "0b102",
    "0x",
    "0x_1",
    "0x1_F",
    "1_000",
    "1__0",
    "_1",
    "1_",
    "0_1",
    "01",
    "007",
    "0x8000",
    "0x7FFF",
    "-0x8000",
    "32767",
    "32768",
    "-32768",
    "-32769",
    "2147483647",
    "2147483648",
    "-2147483648",
    "-2147483649",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "99999999999999999999999999",
    "1a",
    "a",
    "١",
    "1\u{b}",
    "1\u{c}",
    "\u{a0}1",
    "0xFFFFFFFFFFFFFFFF",
    "-0x8000000000000000",
    "0x7FFFFFFFFFFFFFFF",
    "0o",
    "0b",
    "- 1",
    "1 2",
    "0 x1",
    "0b11111111_11111111",
    "0o7_7",
    "t",
    "f",
    "tr",
    "TRUE",
    "True ",
    " false",
    "y",
    "ye",
    "yes",
    "yess",
    "n",
    "no",
    "o",
    "on",
    "of",
    "off",
    "offf",
    "ON",
    "\ttrue\n",
    "truee",
    "10",
    "00",
    "n o",
    "é",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
    "A0EEBC999C0B4EF8BB6D6BB9BD380A11",
    "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
    "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a111",
    " a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
    "a0eebc99--9c0b-4ef8-bb6d-6bb9bd380a11",
    "a0e-ebc999c0b4ef8bb6d6bb9bd380a11",
    "a0eebc999c0b4ef8bb6d6bb9bd380a11-",
    "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "-a0eebc999c0b4ef8bb6d6bb9bd380a11",
];
