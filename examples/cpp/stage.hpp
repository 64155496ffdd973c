// Stages of a bundle, run by OpenVINO on the processor.
#pragma once

#include <algorithm>
#include <map>
#include <openvino/openvino.hpp>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"

using Tensors = std::map<std::string, ov::Tensor>;

inline ov::element::Type element_type(const std::string& dtype) {
    static const std::map<std::string, ov::element::Type> types{
        {"float32", ov::element::f32}, {"bool", ov::element::boolean}, {"uint8", ov::element::u8}};
    const auto found = types.find(dtype);
    if (found == types.end()) throw Failure("a stage has tensors of " + dtype + ", which this program does not know");
    return found->second;
}

// What an error of OpenVINO says: its last line, behind the places in the library that it passed.
inline std::string last_line(const std::exception& error) {
    std::string text = error.what();
    text.erase(text.find_last_not_of("\n .:") + 1);
    return text.substr(text.find_last_of('\n') + 1);
}

// Views first to last of a tensor whose first axis is views; shares its memory.
inline ov::Tensor views_of(ov::Tensor whole, std::size_t first, std::size_t last) {
    ov::Shape shape = whole.get_shape();
    const std::size_t bytes = whole.get_byte_size() / shape[0];
    shape[0] = last - first;
    return ov::Tensor(whole.get_element_type(), shape, static_cast<char*>(whole.data()) + first * bytes);
}

// The ranges (first, last) that `views` views are divided into, at most `chunk` at a time.
inline std::vector<std::pair<std::size_t, std::size_t>> chunks(std::size_t views, std::size_t chunk) {
    std::vector<std::pair<std::size_t, std::size_t>> result;
    for (std::size_t first = 0; first < views; first += chunk)
        result.emplace_back(first, std::min(first + chunk, views));
    return result;
}

class Stage {
public:
    Stage(ov::Core& core, const Bundle& bundle, const std::string& name)
        : name_(name), inputs_(bundle.stage(name).at("inputs")), outputs_(bundle.stage(name).at("outputs")) {
        // OpenVINO would round to bfloat16 wherever the processor has it. A bundle says itself whether it is to.
        const bool rounds = bundle.in_bfloat16(name);
        const std::vector<std::string> can = core.get_property("CPU", ov::device::capabilities);
        if (rounds && std::find(can.begin(), can.end(), ov::device::capability::BF16) == can.end())
            throw Failure("this processor has no bfloat16 products; build the bundle in fp32");
        const ov::AnyMap options{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                                 ov::hint::inference_precision(rounds ? ov::element::bf16 : ov::element::f32),
                                 ov::hint::dynamic_quantization_group_size(0)};
        guarded([&] { model_ = core.compile_model(bundle.stage_file(name), "CPU", options); });
    }

    // Run it once. Inputs and results are held against the manifest: OpenVINO takes what fits only nearly, and gives
    // empty tensors where memory runs out.
    Tensors run(const Tensors& given) {
        std::map<std::string, std::size_t> axes;
        for (const json& tensor : inputs_) {
            const std::string name = tensor.at("name");
            if (given.count(name) == 0) fail("wants " + name + ", which this program does not have");
            check(tensor, given.at(name), axes);
        }
        Tensors results;
        guarded([&] {
            ov::InferRequest request = model_.create_infer_request();  // a new one: its results stay ours
            for (const json& tensor : inputs_) request.set_tensor(tensor.at("name"), given.at(tensor.at("name")));
            request.infer();
            for (const json& tensor : outputs_) results[tensor.at("name")] = request.get_tensor(tensor.at("name"));
        });
        for (const json& tensor : outputs_) check(tensor, results.at(tensor.at("name")), axes);
        return results;
    }

private:
    // Hold a tensor against the manifest: "14*patch_rows" is 14 times an axis that has one size in a whole call.
    void check(const json& wanted, const ov::Tensor& found, std::map<std::string, std::size_t>& axes) const {
        const ov::Shape shape = found.get_shape();
        bool fits = found.get_element_type() == element_type(wanted.at("dtype")) &&
                    shape.size() == wanted.at("shape").size();
        for (std::size_t i = 0; fits && i < shape.size(); ++i) {
            const json& side = wanted.at("shape").at(i);
            if (side.is_string()) {
                const auto text = side.get<std::string>();
                const auto star = text.find('*');
                const std::size_t factor = star == std::string::npos ? 1 : positive(json::parse(text.substr(0, star)));
                const std::string axis = star == std::string::npos ? text : text.substr(star + 1);
                fits = shape[i] == factor * axes.emplace(axis, shape[i] / factor).first->second;
            } else {
                fits = side == shape[i];
            }
        }
        if (!fits) fail("has another " + wanted.at("name").get<std::string>() + " than the manifest says");
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw Failure("the stage " + name_ + " " + what + "; build the bundle again");
    }

    // Call OpenVINO, and say which stage failed.
    template <class Call>
    void guarded(const Call& call) const {
        try {
            call();
        } catch (const ov::Exception& error) {
            fail("failed in OpenVINO (" + last_line(error) + ")");
        }
    }

    std::string name_;
    const json &inputs_, &outputs_;
    ov::CompiledModel model_;
};
