//! The schema of a Rust type, as Kubernetes wants it: structural, and without what it warns of.
//!
//! 1. Of an enum with fields one object is made: the fields of all variants, and which of them each variant must have.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// The schema of `T`.
pub(super) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    make_structural(&mut schema);
    schema
}

fn make_structural(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.remove("title");
    // Kubernetes refuses unknown fields anyhow, when it is asked to; a map says what its values are.
    if fields.get("additionalProperties").is_some_and(Value::is_boolean) {
        fields.remove("additionalProperties");
    }
    one_line(fields);
    sign_numbers(fields);
    if let Some(Value::Array(variants)) = fields.remove("anyOf") {
        merge_null(fields, variants);
    }
    if let Some(Value::Array(variants)) = fields.remove("oneOf") {
        if variants.iter().all(|variant| variant["type"] == "string") {
            merge_names(fields, &variants);
        } else {
            merge_objects(fields, variants);
        }
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(make_structural);
    }
    if let Some(items) = fields.get_mut("items") {
        make_structural(items);
    }
}

/// Lines of a source are not lines of a text.
fn one_line(fields: &mut Map<String, Value>) {
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.replace('\n', " ");
    }
}

/// Kubernetes has no format for numbers without a sign, and `store` refuses what 64 bits with a sign do not hold.
fn sign_numbers(fields: &mut Map<String, Value>) {
    match fields.get("format").and_then(Value::as_str) {
        Some("uint64") => {}
        Some("uint32") => drop(fields.insert("maximum".into(), u32::MAX.into())),
        _ => return,
    }
    fields.insert("format".into(), "int64".into());
}

/// A name or null: what the name may be, and that it may be null.
fn merge_null(fields: &mut Map<String, Value>, variants: Vec<Value>) {
    for variant in variants.into_iter().filter(|variant| variant["enum"] != json!([null])) {
        let Value::Object(variant) = variant else { continue };
        for (name, value) in variant {
            // What the field says of itself is more than what its type says.
            fields.entry(name).or_insert(value);
        }
    }
    fields.insert("nullable".into(), true.into());
}

/// Variants without fields: names, and what each of them means.
fn merge_names(fields: &mut Map<String, Value>, variants: &[Value]) {
    let mut description: Vec<String> =
        fields.get("description").and_then(Value::as_str).map(str::to_owned).into_iter().collect();
    let mut names = Vec::new();
    for variant in variants {
        let of_variant: Vec<&str> =
            variant["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(text) = variant["description"].as_str() {
            description.push(format!("{}: {}", of_variant.join(", "), text.replace('\n', " ")));
        }
        names.extend(of_variant);
    }
    fields.insert("type".into(), "string".into());
    fields.insert("enum".into(), json!(names));
    fields.insert("description".into(), description.join("\n").into());
}

/// Variants with fields, told apart by one that has a single value in each (invariant 1).
fn merge_objects(fields: &mut Map<String, Value>, variants: Vec<Value>) {
    let mut properties = Map::new();
    let mut told_apart = Vec::new();
    let (mut tag, mut names, mut meanings) = (String::new(), Vec::new(), Vec::new());
    for mut variant in variants {
        let Value::Object(own) = variant["properties"].take() else { continue };
        for (name, property) in own {
            if let Some(value) = property["enum"].get(0).and_then(Value::as_str) {
                if let Some(text) = variant["description"].as_str() {
                    meanings.push(format!("{value}: {}", text.replace('\n', " ")));
                }
                told_apart.push(json!({
                    "properties": { &name: { "enum": [value] } }, "required": variant["required"],
                }));
                names.push(value.to_owned());
                tag = name;
            } else {
                properties.insert(name, property);
            }
        }
    }
    let description = meanings.join("\n");
    properties.insert(tag.clone(), json!({ "type": "string", "enum": names, "description": description }));
    fields.insert("type".into(), "object".into());
    fields.insert("properties".into(), properties.into());
    fields.insert("required".into(), json!([tag]));
    fields.insert("oneOf".into(), told_apart.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{MemberRecord, Pool, PoolState};

    #[test]
    fn a_map_says_what_its_values_are() {
        let node = schema_of::<model::Node>();
        let topology = &node["properties"]["topology"];
        assert_eq!(
            (&topology["type"], &topology["additionalProperties"]["type"]),
            (&json!("object"), &json!("string"))
        );
        assert!(!node["required"].as_array().unwrap().contains(&"topology".into()));
        assert_eq!(node["properties"]["spec"].get("additionalProperties"), None);
    }

    #[test]
    fn enums_are_structural() {
        let state = schema_of::<PoolState>();
        assert_eq!(state["type"], "string");
        assert_eq!(state["enum"], json!(["Online", "Degraded", "Failed", "Gone"]));
        assert!(state["description"].as_str().unwrap().contains("Online: Open."), "{state}");

        let state = &schema_of::<MemberRecord>()["properties"]["state"];
        assert_eq!(state["required"], json!(["name"]));
        assert_eq!(state["properties"]["since"]["properties"]["epoch"]["format"], "int64");
        let with_since =
            json!({ "properties": { "name": { "enum": ["Stale"] } }, "required": ["name", "since"] });
        assert!(state["oneOf"].as_array().unwrap().contains(&with_since), "{state}");
    }

    #[test]
    fn what_may_be_missing_may_be_null() {
        let schema = schema_of::<MemberRecord>();
        assert_eq!(schema["properties"]["bootId"]["nullable"], true, "{schema}");
        assert_eq!(schema["properties"]["bootId"]["type"], "string");
        assert!(!schema["required"].as_array().unwrap().contains(&"bootId".into()));

        let pool = schema_of::<Pool>();
        let class = &pool["properties"]["class"];
        assert_eq!((&class["type"], &class["nullable"]), (&json!("string"), &json!(true)), "{class}");
        assert_eq!(class["enum"], json!(["NVMe", "SSD", "HDD"]));
        assert_eq!((class.get("anyOf"), class.get("oneOf")), (None, None), "{class}");
        assert!(
            class["description"].as_str().unwrap().starts_with("What kind of medium its disk is"),
            "{class}"
        );
        assert!(!pool["required"].as_array().unwrap().contains(&"class".into()));
    }
}
